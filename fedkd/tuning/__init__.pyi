from .results import MAX_TABLE_TRIALS as MAX_TABLE_TRIALS
from .runner import TuneResult as TuneResult
from .runner import describe_tune as describe_tune
from .runner import plan_tune as plan_tune
from .runner import tune as tune
from .schema import load_search as load_search
from .schema import search_json_schema as search_json_schema
