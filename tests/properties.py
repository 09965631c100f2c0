"""Properties for core tests: hypothesis, or tests that say by name that it is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hypothesis import given
    from hypothesis import strategies as st
else:
    try:
        from hypothesis import given
        from hypothesis import strategies as st
    except ModuleNotFoundError:

        class Anything:
            """Stands for any strategy, and for what is made of it."""

            def __getattr__(self, name: str) -> Anything:
                return self

            def __call__(self, *arguments: Any, **options: Any) -> Anything:
                return self

            def __or__(self, other: object) -> Anything:
                return self

        st = Anything()

        def given(*strategies: Any, **named: Any) -> Any:
            """Skip the test, by name."""

            def without_arguments(test: Any) -> Any:
                def skipped() -> None: ...

                skipped.__name__ = test.__name__
                reason = "hypothesis is not installed: pip install -r requirements-dev.txt"
                return pytest.mark.skip(reason=reason)(skipped)

            return without_arguments


__all__ = ["given", "st"]
