"""Messages of validation errors: the allowed values and the given value."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedkd.errors import did_you_mean

_BOUNDS = {
    "greater_than_equal": ("≥", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("≤", "le"),
    "less_than": ("<", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}

_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a string",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "a table"),
    **dict.fromkeys(("model_attributes_type", "dataclass_type"), "a table"),
}

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def explain_error(error: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """Return the message of an entry of ``ValidationError.errors()``: ``must be ≥ 0, got -1``."""
    kind, context, got = error["type"], error.get("ctx", {}), show_value(error.get("input"))
    if kind in _UNKNOWN:
        return f"unknown key; {did_you_mean(str(error['loc'][-1]), known)}"
    if kind in _MISSING:
        return "missing; it has no default"
    if kind in _BOUNDS:
        sign, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {sign} {f'{limit:g}' if isinstance(limit, float) else limit}, got {got}"
    if kind in ("literal_error", "enum"):
        allowed = context["expected"].replace(" or ", ", ")
        return f"must be {'one of ' * (', ' in allowed)}{allowed}, got {got}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, got {got}"
    if kind in ("too_short", "too_long"):
        end, bound = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        return f"must have at {end} {context[bound]} entries, got {context['actual_length']}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {got}"
    if kind == "value_error":  # a validator of fedkd, with a message for the user
        return str(context["error"])
    message = str(error["msg"])
    return f"{message[:1].lower()}{message[1:]}, got {got}"


def show_value(value: Any) -> str:
    """Return `value` as in a scenario file, shortened to fit a line."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
