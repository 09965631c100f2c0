"""What every adversary stands on: proxy, catalogue, verdict, observer, event log, rules, search."""
