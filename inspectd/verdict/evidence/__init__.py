"""Pictures of what was judged, in full resolution, on a disk that may be full, slow or gone.

keep() ──a copy of the region's planes──> bounded queue ──> thread "evidence" ──> RGB ──> PNG ──> folder
"""

from inspectd.verdict.evidence.store import EvidenceLoss, EvidenceMetrics, EvidenceStore

__all__ = ["EvidenceLoss", "EvidenceMetrics", "EvidenceStore"]
