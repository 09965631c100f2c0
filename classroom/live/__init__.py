"""The man in the middle in a browser: what the proxy and the event log know, live on one page.

`show` is the program; `app` serves `page` to the browser that `safe` lets in, and takes what it
asks for to the `room`: that has the `ends`, the `table` between them and the attacks of `plays`.
What happens goes to the `scene`, and from there to each browser, as JSON made by `views`.
"""
