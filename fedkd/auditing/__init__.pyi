from .audit import audit as audit
from .result import AuditResult as AuditResult
