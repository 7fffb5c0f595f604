//! What happens between the shim and the CA: calls, answers, faults, and what is shown to it.

mod answers;
mod calm;
mod csr;
mod failover;
mod faults;
mod floods;
mod istio_csr;
mod mutual_tls;
mod names;
mod reconnects;
mod renewal_answers;
mod retry_after;
mod tls;
