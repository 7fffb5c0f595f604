//! Pins the OpenSSL source; there is nothing else in it.
