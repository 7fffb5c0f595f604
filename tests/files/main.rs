//! Certificates from files, and to files.

mod hostile;
mod key_kinds;
mod mounted;
mod mounted_failures;
mod mounted_flaws;
mod output_certs;
mod output_full;
mod overdue;
mod pem_forms;
mod refused;
