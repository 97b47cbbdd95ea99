"""The server's work: fusing knowledge to guidance, and training models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "by_task": ["TaskwiseFusion", "is_pending_guidance", "model_weights"],
        "clients_at_work": ["ClientJob", "JobsInFlight"],
        "fusing": ["ServerKnowledge"],
        "knowledge_cache": ["Upload"],
        "mailbox": ["GuidanceParcel"],
        "models": ["TransferSet", "TransferSetModels"],
        "orthogonal": ["OrthogonalTraining", "WeightRoles", "exchanged_bytes"],
        "peers": ["PeerTopology"],
        "reports": ["FusionReport", "Links"],
        "trial": ["trial_exchange"],
    },
)
