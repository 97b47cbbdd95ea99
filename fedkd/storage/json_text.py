"""Parse JSON; every failure of Python's parser becomes an `InvalidJson`."""

import json
from typing import Any


class InvalidJson(ValueError):
    """A text is not JSON, or is nested too deeply."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(str(error)) from None
    except UnicodeDecodeError:
        raise InvalidJson("it is not UTF-8 text") from None
    except ValueError:  # of int()
        raise InvalidJson("a number with thousands of digits") from None
    except RecursionError:
        raise InvalidJson("lists or tables thousands deep") from None
