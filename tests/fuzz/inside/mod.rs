//! What the fuzz targets do with private parts of `sds`. It stands here and is compiled there (`names.rs` in `resolve`), in builds for fuzzing
//! alone, so that nothing of `sds` need be public.

mod authority;
mod requests;

pub use authority::authority;
pub use requests::requests;
