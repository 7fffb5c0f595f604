//! The manual. It reads the same as files of the repository and as these pages.

/// How to do one thing, from its beginning to its end.
pub mod guide {}

/// Every variable, command, metric and behaviour.
pub mod reference {
    #[doc = include_str!("reference/metrics.md")]
    pub mod metrics {}

    #[doc = include_str!("reference/troubleshooting.md")]
    pub mod troubleshooting {}
}

/// Why things are as they are.
pub mod design {
    #[doc = include_str!("design/architecture.md")]
    pub mod architecture {}

    #[doc = include_str!("design/threat_model.md")]
    pub mod threat_model {}
}

/// What was measured and compared.
pub mod evidence {
    #[doc = include_str!("evidence/budgets.md")]
    pub mod budgets {}

    #[doc = include_str!("evidence/capacity.md")]
    pub mod capacity {}

    #[doc = include_str!("evidence/conformance.md")]
    pub mod conformance {}

    #[doc = include_str!("evidence/differences.md")]
    pub mod differences {}
}
