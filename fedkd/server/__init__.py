"""The server's work: knowledge in, guidance out, and the models it trains itself. No messages, no engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "by_task": ["FusingByTask", "model_in", "waits"],
        "clients_at_work": ["InFlight", "Job"],
        "fusing": ["ServerKnowledge"],
        "knowledge_cache": ["Upload"],
        "mailbox": ["Parcel"],
        "models": ["TransferSet", "TransferSetModels"],
        "orthogonal": ["OrthogonalTraining", "Weights", "exchanged_bytes"],
        "peers": ["Mixing"],
        "reports": ["FusionReport", "Links"],
        "trial": ["trial_exchange"],
    },
)
