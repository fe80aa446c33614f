"""Types of the numbers that cross a room's border."""

from typing import NewType

Term = NewType("Term", int)
Index = NewType("Index", int)
Revision = NewType("Revision", int)
LeaseID = NewType("LeaseID", int)
MemberID = NewType("MemberID", int)
ClusterID = NewType("ClusterID", int)
SessionID = NewType("SessionID", int)
Sequence = NewType("Sequence", int)
Incarnation = NewType("Incarnation", int)
