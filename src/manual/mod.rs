//! The manual: guides for one task each, a reference, the design, and the evidence.
//!
//! The pages read the same as files of the repository. Links to files outside of the manual work only there.

/// A page. Its links between pages lead to files; what comes first here has them lead to modules.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = include_str!("links.md")]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

/// How to do one thing, from beginning to end.
pub mod guide {
    page!(sidecar, "guide/sidecar.md");
    page!(kubernetes, "guide/kubernetes.md");
    page!(istio, "guide/istio.md");
    page!(virtual_machine, "guide/virtual_machine.md");
    page!(migration, "guide/migration.md");
    page!(trust_domain, "guide/trust_domain.md");
    page!(control_plane, "guide/control_plane.md");
    page!(istio_csr, "guide/istio_csr.md");
    page!(spire, "guide/spire.md");
    page!(openssl, "guide/openssl.md");
}

/// Every variable, command, behaviour, metric and symptom.
pub mod reference {
    page!(environment, "reference/environment.md");
    page!(commands, "reference/commands.md");
    page!(behaviour, "reference/behaviour.md");
    page!(metrics, "reference/metrics.md");
    page!(dashboard, "reference/dashboard.md");
    page!(logging, "reference/logging.md");
    page!(troubleshooting, "reference/troubleshooting.md");
}

/// Why things are as they are.
pub mod design {
    page!(architecture, "design/architecture.md");
    page!(threat_model, "design/threat_model.md");
    page!(keys, "design/keys.md");
}

/// What was measured and compared.
pub mod evidence {
    page!(budgets, "evidence/budgets.md");
    page!(kernels, "evidence/kernels.md");
    page!(real_node, "evidence/real_node.md");
    page!(runtimes, "evidence/runtimes.md");
    page!(benchmarks, "evidence/benchmarks.md");
    page!(capacity, "evidence/capacity.md");
    page!(certificates, "evidence/certificates.md");
    page!(recovery, "evidence/recovery.md");
    page!(conformance, "evidence/conformance.md");
    page!(differences, "evidence/differences.md");
}
