"""JSON, digests, atomic writes, and arrays without pickle."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "atomic": [
            "atomic_replacement",
            "break_hard_link",
            "sync_folder",
            "write_bytes_atomically",
            "write_json_atomically",
            "write_text_atomically",
        ],
        "between_runs": ["once_for_runs", "shared_between_runs"],
        "digests": [
            "NO_RUN_DIGEST",
            "content_digest",
            "file_digest",
            "list_table_rounds",
            "read_table",
            "table_path",
            "write_table",
        ],
        "json_text": ["InvalidJson", "parse_json"],
        "namespaces": ["add_prefix", "group_by_number", "strip_prefix"],
        "paths": ["expand_path"],
        "saved_arrays": [
            "Arrays",
            "DamagedFile",
            "SavedFile",
            "SavedStates",
            "sha256",
            "sync_file",
            "write_arrays",
            "write_bytes",
        ],
    },
)
