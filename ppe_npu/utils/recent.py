"""A cache of the values that were made for the last few keys."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

_MISSING = object()


class Recent:
    """Keeps the values made for the last `most` keys. Callers share these values and must not change them."""

    def __init__(self, most: int = 8):
        self.most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value for this key, from make() if it is not cached."""
        # Removing and re-inserting are each atomic. Threads may ask at the same time, and then make a value twice.
        value = self._values.pop(key, _MISSING)
        if value is _MISSING:
            value = make()
        self._values[key] = value
        while len(self._values) > self.most:
            with suppress(KeyError):  # another thread was faster
                self._values.popitem(last=False)
        return value
