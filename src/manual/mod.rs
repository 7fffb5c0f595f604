//! The manual. It reads the same as files of the repository and as these pages.

/// How to do one thing, from its beginning to its end.
pub mod guide {
    #[doc = include_str!("guide/sidecar.md")]
    pub mod sidecar {}

    #[doc = include_str!("guide/kubernetes.md")]
    pub mod kubernetes {}

    #[doc = include_str!("guide/istio.md")]
    pub mod istio {}

    #[doc = include_str!("guide/virtual_machine.md")]
    pub mod virtual_machine {}

    #[doc = include_str!("guide/migration.md")]
    pub mod migration {}

    #[doc = include_str!("guide/trust_domain.md")]
    pub mod trust_domain {}

    #[doc = include_str!("guide/control_plane.md")]
    pub mod control_plane {}

    #[doc = include_str!("guide/openssl.md")]
    pub mod openssl {}
}

/// Every variable, command, metric and behaviour.
pub mod reference {
    #[doc = include_str!("reference/environment.md")]
    pub mod environment {}

    #[doc = include_str!("reference/commands.md")]
    pub mod commands {}

    #[doc = include_str!("reference/behaviour.md")]
    pub mod behaviour {}

    #[doc = include_str!("reference/metrics.md")]
    pub mod metrics {}

    #[doc = include_str!("reference/dashboard.md")]
    pub mod dashboard {}

    #[doc = include_str!("reference/logging.md")]
    pub mod logging {}

    #[doc = include_str!("reference/troubleshooting.md")]
    pub mod troubleshooting {}
}

/// Why things are as they are.
pub mod design {
    #[doc = include_str!("design/architecture.md")]
    pub mod architecture {}

    #[doc = include_str!("design/threat_model.md")]
    pub mod threat_model {}

    #[doc = include_str!("design/keys.md")]
    pub mod keys {}
}

/// What was measured and compared.
pub mod evidence {
    #[doc = include_str!("evidence/budgets.md")]
    pub mod budgets {}

    #[doc = include_str!("evidence/benchmarks.md")]
    pub mod benchmarks {}

    #[doc = include_str!("evidence/capacity.md")]
    pub mod capacity {}

    #[doc = include_str!("evidence/conformance.md")]
    pub mod conformance {}

    #[doc = include_str!("evidence/differences.md")]
    pub mod differences {}
}
