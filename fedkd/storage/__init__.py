"""Files and their names: JSON, digests, whole or absent writes, arrays without pickle.

Start with `atomic`: every file of a run is written through it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "atomic": [
            "replacing",
            "sync_folder",
            "unshare",
            "write_bytes_atomically",
            "write_json_atomically",
            "write_text_atomically",
        ],
        "digests": [
            "NO_RUN",
            "content_digest",
            "file_digest",
            "read_table",
            "rounds_with_tables",
            "table_path",
            "write_table",
        ],
        "json_text": ["NotJson", "parse_json"],
        "namespaces": ["below", "by_number", "under"],
        "paths": ["expanded"],
        "saved_arrays": [
            "Arrays",
            "Damaged",
            "SavedFile",
            "SavedStates",
            "sha256",
            "sync_file",
            "write_arrays",
            "write_bytes",
        ],
    },
)
