//! Pods and services as Kubernetes' API gives them, as far as they are understood here. A field that is not, such as a
//! volume of the host, is an error: nothing of a manifest is left out silently. Fields with an
//! underscore are for others than kubelet: the scheduler, admission, the image store.

mod container;
mod volume;

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

pub(super) use container::*;
pub(super) use volume::*;

/// Names of anything to texts.
pub(super) type Texts = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pod {
    #[serde(rename = "apiVersion")]
    pub(super) _api_version: ApiVersion,
    #[serde(rename = "kind")]
    pub(super) _kind: PodKind,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    /// What kubelet itself would write.
    #[serde(rename = "status")]
    pub(super) _status: Option<IgnoredAny>,
}

impl Pod {
    /// A container by its name.
    pub(super) fn container(&self, name: &str) -> Option<&Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers).find(|container| container.name == name)
    }
}

#[derive(Deserialize)]
pub(super) enum ApiVersion {
    #[serde(rename = "v1")]
    V1,
}

#[derive(Deserialize)]
pub(super) enum PodKind {
    Pod,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(default = "default_namespace")]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) labels: Texts,
    #[serde(default)]
    pub(super) annotations: Texts,
    pub(super) uid: Option<String>,
    #[serde(rename = "creationTimestamp")]
    _creation_timestamp: Option<IgnoredAny>,
    #[serde(rename = "generateName")]
    _generate_name: Option<IgnoredAny>,
    #[serde(rename = "generation")]
    _generation: Option<IgnoredAny>,
    #[serde(rename = "managedFields")]
    _managed_fields: Option<IgnoredAny>,
    #[serde(rename = "ownerReferences")]
    _owner_references: Option<IgnoredAny>,
    #[serde(rename = "resourceVersion")]
    _resource_version: Option<IgnoredAny>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
    #[serde(default)]
    pub(super) init_containers: Vec<Container>,
    pub(super) containers: Vec<Container>,
    pub(super) termination_grace_period_seconds: Option<u64>,
    pub(super) service_account_name: Option<String>,
    #[serde(default)]
    pub(super) security_context: PodSecurity,
    #[serde(default)]
    pub(super) share_process_namespace: bool,
    pub(super) enable_service_links: Option<bool>,
    pub(super) node_name: Option<String>,
    #[serde(rename = "dnsPolicy")]
    _dns_policy: Option<DnsPolicy>,
    /// Containers that end stay ended here, whatever the policy: a test says when kubelet comes by.
    #[serde(rename = "restartPolicy")]
    _restart_policy: Option<IgnoredAny>,
    #[serde(rename = "serviceAccount")]
    _service_account: Option<IgnoredAny>,
    #[serde(rename = "automountServiceAccountToken")]
    _automount_service_account_token: Option<IgnoredAny>,
    #[serde(rename = "preemptionPolicy")]
    _preemption_policy: Option<IgnoredAny>,
    #[serde(rename = "priority")]
    _priority: Option<IgnoredAny>,
    #[serde(rename = "schedulerName")]
    _scheduler_name: Option<IgnoredAny>,
    #[serde(rename = "tolerations")]
    _tolerations: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum DnsPolicy {
    ClusterFirst,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodSecurity {
    pub(super) run_as_user: Option<u32>,
    pub(super) run_as_group: Option<u32>,
    pub(super) run_as_non_root: Option<bool>,
    pub(super) fs_group: Option<u32>,
    pub(super) seccomp_profile: Option<Seccomp>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all_fields = "camelCase", deny_unknown_fields, tag = "type")]
pub(super) enum Seccomp {
    RuntimeDefault,
    Unconfined,
    Localhost { localhost_profile: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FieldRef {
    pub(super) field_path: String,
    #[serde(rename = "apiVersion")]
    _api_version: Option<ApiVersion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: ServiceKind,
    pub(super) metadata: Metadata,
    pub(super) spec: ServiceSpec,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum ServiceKind {
    Service,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServiceSpec {
    pub(super) ports: Vec<ServicePort>,
    #[serde(default)]
    pub(super) selector: Texts,
    #[serde(rename = "type")]
    _type: Option<ServiceType>,
    /// The node has addresses of its own.
    #[serde(rename = "clusterIP")]
    _cluster_ip: Option<IgnoredAny>,
    #[serde(rename = "clusterIPs")]
    _cluster_ips: Option<IgnoredAny>,
    #[serde(rename = "internalTrafficPolicy")]
    _internal_traffic_policy: Option<IgnoredAny>,
    #[serde(rename = "ipFamilies")]
    _ip_families: Option<IgnoredAny>,
    #[serde(rename = "ipFamilyPolicy")]
    _ip_family_policy: Option<IgnoredAny>,
    #[serde(rename = "sessionAffinity")]
    _session_affinity: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum ServiceType {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServicePort {
    pub(super) name: Option<String>,
    pub(super) port: u16,
    pub(super) target_port: Option<PortRef>,
    #[serde(rename = "appProtocol")]
    _app_protocol: Option<IgnoredAny>,
    #[serde(rename = "protocol")]
    _protocol: Option<Protocol>,
}

#[derive(Deserialize)]
enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
}
