"""The JSON schema of searches, for editors that complete and check them."""

from __future__ import annotations

from typing import Any

from fedkd.benchmark.json_schema import with_scenario
from fedkd.tuning.objective import OBJECTIVES
from fedkd.tuning.schema import TuneFile
from fedkd.tuning.space import Range


def search_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a search, its `[scenario]` included as far as a scenario's own schema goes.

    Keys of `set` and `search` are those of a scenario, dotted or nested: they are not checked before a search
    is read.
    """
    schema = with_scenario(TuneFile.model_json_schema(), "fedkd search")
    schema["properties"]["metric"]["enum"] = list(OBJECTIVES)
    schema["$defs"]["Range"] = Range.model_json_schema()
    varied = [{"$ref": "#/$defs/Range"}, {"type": "array", "minItems": 2}, {"type": "object"}]
    schema["properties"]["search"]["additionalProperties"] = {"anyOf": varied}
    return schema
