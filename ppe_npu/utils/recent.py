"""What was made for the last few keys, so that it need not be made again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

_MISSING = object()


class Recent:
    """Keeps what was made for the last `most` keys. What it gives is shared: nobody may change it."""

    def __init__(self, most: int = 8):
        self.most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What make() gave for this key; it is called if that is not among the last."""
        # Taken out and put back at the end, each in one go: threads may ask at once, and may make the same twice.
        value = self._values.pop(key, _MISSING)
        if value is _MISSING:
            value = make()
        self._values[key] = value
        while len(self._values) > self.most:
            with suppress(KeyError):  # another thread was quicker
                self._values.popitem(last=False)
        return value


def as_numbers(given: Any) -> Any:
    """A tensor, or a list of tensors, as a list of what they hold: as a key's text they do not have all digits."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if type(given) not in (list, tuple):
        return given
    return [part.tolist() if hasattr(part, "tolist") else part for part in given]
