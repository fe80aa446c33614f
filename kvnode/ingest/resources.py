"""Where the API server keeps an object in etcd: the path of its kind, with or without a namespace.

Role: (group, kind) to (path below /registry, namespaced?). Caller: manifests.

Built-in kinds have no group in their path and a few have old names; CustomResourceDefinitions,
APIServices and custom resources stand below their group. A custom kind is named by the
CustomResourceDefinition read before it in the same import, otherwise by the rule that kubectl
guesses with, and is taken as namespaced.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Resource(NamedTuple):
    """`path` stands between /registry/ and the namespace or name."""

    path: str
    namespaced: bool


_CLUSTER = """
/Namespace /Node /PersistentVolume /ComponentStatus
rbac.authorization.k8s.io/ClusterRole rbac.authorization.k8s.io/ClusterRoleBinding
storage.k8s.io/StorageClass storage.k8s.io/CSINode storage.k8s.io/CSIDriver
storage.k8s.io/VolumeAttachment storage.k8s.io/VolumeAttributesClass
admissionregistration.k8s.io/MutatingWebhookConfiguration
admissionregistration.k8s.io/ValidatingWebhookConfiguration
admissionregistration.k8s.io/ValidatingAdmissionPolicy
admissionregistration.k8s.io/ValidatingAdmissionPolicyBinding
admissionregistration.k8s.io/MutatingAdmissionPolicy
admissionregistration.k8s.io/MutatingAdmissionPolicyBinding
certificates.k8s.io/CertificateSigningRequest certificates.k8s.io/ClusterTrustBundle
scheduling.k8s.io/PriorityClass node.k8s.io/RuntimeClass networking.k8s.io/IngressClass
networking.k8s.io/IPAddress networking.k8s.io/ServiceCIDR
flowcontrol.apiserver.k8s.io/FlowSchema
flowcontrol.apiserver.k8s.io/PriorityLevelConfiguration
policy/PodSecurityPolicy resource.k8s.io/DeviceClass resource.k8s.io/ResourceSlice
internal.apiserver.k8s.io/StorageVersion storagemigration.k8s.io/StorageVersionMigration
"""

_NAMESPACED = """
/Pod /Service /Endpoints /ConfigMap /Secret /ServiceAccount /Event /LimitRange /ResourceQuota
/PersistentVolumeClaim /PodTemplate /ReplicationController
apps/Deployment apps/DaemonSet apps/StatefulSet apps/ReplicaSet apps/ControllerRevision
batch/Job batch/CronJob autoscaling/HorizontalPodAutoscaler policy/PodDisruptionBudget
networking.k8s.io/NetworkPolicy networking.k8s.io/Ingress
extensions/Ingress extensions/Deployment extensions/DaemonSet extensions/ReplicaSet
extensions/NetworkPolicy
rbac.authorization.k8s.io/Role rbac.authorization.k8s.io/RoleBinding
coordination.k8s.io/Lease coordination.k8s.io/LeaseCandidate discovery.k8s.io/EndpointSlice
events.k8s.io/Event storage.k8s.io/CSIStorageCapacity
resource.k8s.io/ResourceClaim resource.k8s.io/ResourceClaimTemplate
"""

# Paths that are not the plural in lower case.
_PATHS = {
    "/Node": "minions",
    "/Service": "services/specs",
    "/Endpoints": "services/endpoints",
    "/ReplicationController": "controllers",
    "/ComponentStatus": "componentstatuses",
    "networking.k8s.io/Ingress": "ingress",
    "extensions/Ingress": "ingress",
    "policy/PodSecurityPolicy": "podsecuritypolicy",
}

# Served by API servers of their own, whose paths carry the group.
_GROUPED = {
    "apiextensions.k8s.io/CustomResourceDefinition":
        Resource("apiextensions.k8s.io/customresourcedefinitions", False),
    "apiregistration.k8s.io/APIService": Resource("apiregistration.k8s.io/apiservices", False),
}  # fmt: skip


def guess_plural(kind: str) -> str:
    """The resource name kubectl guesses for a kind."""
    name = kind.lower()
    if name.endswith("s"):
        return name + "es"
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + "s"


def _built_in() -> dict[str, Resource]:
    out = dict(_GROUPED)
    for names, namespaced in ((_CLUSTER, False), (_NAMESPACED, True)):
        for name in names.split():
            path = _PATHS.get(name) or guess_plural(name.rpartition("/")[2])
            out[name] = Resource(path, namespaced)
    return out


class Resources:
    """The kinds of one import: the built-in ones and those its definitions add."""

    def __init__(self) -> None:
        self._known = _built_in()

    def find(self, api_version: str, kind: str) -> Resource:
        """The place of a kind; `api_version` is v1 or GROUP/VERSION."""
        group = api_version.rpartition("/")[0]
        known = self._known.get(f"{group}/{kind}")
        if known is not None:
            return known
        plural = guess_plural(kind)
        return Resource(f"{group}/{plural}" if group else plural, True)

    def learn(self, definition: dict[str, Any]) -> None:
        """Takes plural and scope from a CustomResourceDefinition; one that lacks them is let be."""
        spec = definition.get("spec")
        names = spec.get("names") if isinstance(spec, dict) else None
        if not isinstance(spec, dict) or not isinstance(names, dict):
            return
        group, kind, plural = spec.get("group"), names.get("kind"), names.get("plural")
        if not all(isinstance(one, str) and one for one in (group, kind, plural)):
            return
        if f"{group}/{kind}" not in _BUILT_IN:
            self._known[f"{group}/{kind}"] = Resource(
                f"{group}/{plural}", spec.get("scope") != "Cluster"
            )


_BUILT_IN = frozenset(_built_in())
