//! Keys read, made and written, with no byte of them outside of secret memory.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
};

use openssl::{
    base64::{decode_block, encode_block},
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    error::ErrorStack,
    nid::Nid,
    pkey::{Id, PKey, PKeyRef, Private, Public},
    pkey_ctx::PkeyCtx,
    rsa::Rsa,
};
use openssl_sys::{BIGNUM, CRYPTO_free, EVP_PKEY};

use crate::scope::secretly;

// Foreign types' trait, through the openssl crate's own dependency.
use foreign_types::{ForeignType, ForeignTypeRef};

/// What OpenSSL finds decoders and encoders with. It allocates tens of kilobytes for them, all of them public: so they
/// are made outside of the scope, and only used inside of it.
type Context = c_void;

unsafe extern "C" {
    fn OSSL_DECODER_CTX_new_for_pkey(
        key: *mut *mut EVP_PKEY,
        input_type: *const c_char,
        input_structure: *const c_char,
        key_type: *const c_char,
        selection: c_int,
        library: *mut c_void,
        properties: *const c_char,
    ) -> *mut Context;
    fn OSSL_DECODER_from_data(context: *mut Context, data: *mut *const u8, len: *mut usize) -> c_int;
    fn OSSL_DECODER_CTX_free(context: *mut Context);
    fn OSSL_ENCODER_CTX_new_for_pkey(
        key: *const EVP_PKEY,
        selection: c_int,
        output_type: *const c_char,
        output_structure: *const c_char,
        properties: *const c_char,
    ) -> *mut Context;
    fn OSSL_ENCODER_to_data(context: *mut Context, data: *mut *mut u8, len: *mut usize) -> c_int;
    fn OSSL_ENCODER_CTX_free(context: *mut Context);
    fn EVP_PKEY_get_bn_param(key: *const EVP_PKEY, name: *const c_char, number: *mut *mut BIGNUM) -> c_int;
    fn EVP_PKEY_get_octet_string_param(
        key: *const EVP_PKEY,
        name: *const c_char,
        to: *mut u8,
        size: usize,
        len: *mut usize,
    ) -> c_int;
    safe fn OPENSSL_thread_stop();
    fn RAND_get0_private(library: *mut c_void) -> *mut c_void;
}

/// `EVP_PKEY_KEYPAIR`: the private key, the public one, and what parameters there are.
const KEY_PAIR: c_int = 0x87;

/// How a private key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// PKCS#8 (RFC 5958).
    Pkcs8,
    /// SEC 1 (RFC 5915) or PKCS#1 (RFC 8017), as the algorithm has it.
    Traditional,
}

/// Makes a key on one of the named curves.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory or randomness, or of the curve.
pub fn generate_ec_key(curve: Nid) -> Result<PKey<Private>, ErrorStack> {
    // What it finds its algorithms with is public, and OpenSSL remembers some of it for ever.
    let mut context = PkeyCtx::new_id(Id::EC)?;
    secretly(|| {
        context.keygen_init()?;
        context.set_ec_paramgen_curve_nid(curve)?;
        context.keygen()
    })
}

/// Makes an RSA key with a modulus of so many bits.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory or randomness.
pub fn generate_rsa_key(bits: u32) -> Result<PKey<Private>, ErrorStack> {
    // OpenSSL asks a generator of its own how strong it is, and uses the kernel's. What it keeps of it, 15 KiB, is
    // public, so it is made out here.
    // SAFETY: null is the usual library context; what is returned stays OpenSSL's.
    let _ = unsafe { RAND_get0_private(ptr::null_mut()) };
    let mut context = PkeyCtx::new_id(Id::RSA)?;
    secretly(|| {
        context.keygen_init()?;
        context.set_rsa_keygen_bits(bits)?;
        context.keygen()
    })
}

/// The same key without what OpenSSL keeps in one that has signed: with RSA 4096 that is 10 KiB, for which there is no
/// room beside the next key while that is made.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory.
pub fn as_if_new(key: PKey<Private>) -> Result<PKey<Private>, ErrorStack> {
    if key.id() != Id::RSA {
        return Ok(key);
    }
    // OpenSSL refuses to copy a key that has methods of our own.
    let pem = write_private_key(&key, Structure::Traditional)?;
    // What is read now takes the place of this, and leaves one large piece for the next key.
    drop(key);
    read_private_key(&pem)
}

/// Reads a key from one PEM block, which must not be encrypted.
///
/// # Errors
/// What OpenSSL says.
pub fn read_private_key(pem: &[u8]) -> Result<PKey<Private>, ErrorStack> {
    decoded(pem, c"PEM", ptr::null())
}

/// Reads a key from PKCS#8 in DER, which must not be encrypted. OpenSSL takes the forms of its algorithm as well.
///
/// # Errors
/// What OpenSSL says.
pub fn read_pkcs8(der: &[u8]) -> Result<PKey<Private>, ErrorStack> {
    decoded(der, c"DER", c"PrivateKeyInfo".as_ptr())
}

/// A key in this form, by OpenSSL's decoders.
fn decoded(key_in: &[u8], form: &CStr, structure: *const c_char) -> Result<PKey<Private>, ErrorStack> {
    let mut key = ptr::null_mut();
    let null = ptr::null();
    // SAFETY: `key` outlives the context, the texts are C strings, and null is no wish.
    let context = unsafe {
        OSSL_DECODER_CTX_new_for_pkey(&raw mut key, form.as_ptr(), structure, null, KEY_PAIR, ptr::null_mut(), null)
    };
    if context.is_null() {
        return Err(ErrorStack::get());
    }
    // Where OpenSSL keeps errors: made out here, if it is not there yet.
    // SAFETY: the call takes nothing.
    unsafe { openssl_sys::ERR_clear_error() };
    let read = secretly(|| {
        let (mut data, mut len) = (key_in.as_ptr(), key_in.len());
        // SAFETY: the context is from above, and the pointers are to variables that say where the bytes are.
        unsafe { OSSL_DECODER_from_data(context, &raw mut data, &raw mut len) }
    });
    // SAFETY: the context is from above and not used any more.
    unsafe { OSSL_DECODER_CTX_free(context) };
    let errors = ErrorStack::get();
    // Decoders that were tried in vain leave words of errors, which would stay among keys for as long as the thread
    // lives, also when they are cleared.
    OPENSSL_thread_stop();
    if read != 1 || key.is_null() {
        return Err(errors);
    }
    // SAFETY: the key is new, and this is its owner.
    Ok(unsafe { PKey::from_ptr(key) })
}

/// Writes a key as PEM (RFC 7468), into a vector that lies in secret memory.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory.
pub fn write_private_key(key: &PKeyRef<Private>, structure: Structure) -> Result<Vec<u8>, ErrorStack> {
    match key.id() {
        Id::EC => secretly(|| {
            let der = der::ec(key, structure == Structure::Traditional)?;
            Ok(match structure {
                Structure::Pkcs8 => armored("PRIVATE KEY", &der),
                Structure::Traditional => armored("EC PRIVATE KEY", &der),
            })
        }),
        Id::RSA => secretly(|| {
            let der = der::rsa(key)?;
            Ok(match structure {
                Structure::Pkcs8 => armored("PRIVATE KEY", &der::pkcs8(&[der::RSA_ENCRYPTION, der::NULL], &der)),
                Structure::Traditional => armored("RSA PRIVATE KEY", &der),
            })
        }),
        _ => encoded(key),
    }
}

/// The key in one PEM block as PKCS#8 in DER, in a vector that lies in secret memory. What is PKCS#8 already, or RSA, is
/// not read for that: there may be no room for another RSA key.
///
/// # Errors
/// What OpenSSL says.
pub fn pkcs8(pem: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    if let Some(der) = secretly(|| content(pem, "PRIVATE KEY")) {
        return Ok(der);
    }
    let rsa = || {
        let key = content(pem, "RSA PRIVATE KEY")?;
        Some(der::pkcs8(&[der::RSA_ENCRYPTION, der::NULL], &key))
    };
    if let Some(der) = secretly(rsa) {
        return Ok(der);
    }
    let pem = write_private_key(&*read_private_key(pem)?, Structure::Pkcs8)?;
    secretly(|| content(&pem, "PRIVATE KEY")).ok_or_else(ErrorStack::get)
}

/// What a PEM block with this label holds.
fn content(pem: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = str::from_utf8(pem).ok()?.trim_ascii();
    let edge = |what: &str| format!("-----{what} {label}-----");
    let base64 = text.strip_prefix(&edge("BEGIN"))?.strip_suffix(&edge("END"))?;
    let mut whole = String::with_capacity(base64.len());
    whole.extend(base64.chars().filter(|character| !character.is_ascii_whitespace()));
    decode_block(&whole).ok()
}

/// PKCS#8 of a key of another kind, by OpenSSL's encoders.
fn encoded(key: &PKeyRef<Private>) -> Result<Vec<u8>, ErrorStack> {
    // SAFETY: the key outlives the context, the texts are C strings, and null is no wish.
    let context = unsafe {
        OSSL_ENCODER_CTX_new_for_pkey(key.as_ptr(), KEY_PAIR, c"DER".as_ptr(), c"PrivateKeyInfo".as_ptr(), ptr::null())
    };
    if context.is_null() {
        return Err(ErrorStack::get());
    }
    let written = secretly(|| {
        let (mut data, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the context is from above; with a null OpenSSL allocates what it writes into.
        let written = unsafe { OSSL_ENCODER_to_data(context, &raw mut data, &raw mut len) };
        if written != 1 || data.is_null() {
            return None;
        }
        // SAFETY: OpenSSL has written so many bytes there.
        let pem = armored("PRIVATE KEY", unsafe { slice::from_raw_parts(data, len) });
        // SAFETY: the block is OpenSSL's, and nobody uses it any more. Ours is wiped when it is freed.
        unsafe { CRYPTO_free(data.cast(), c"".as_ptr(), 0) };
        Some(pem)
    });
    // SAFETY: the context is from above and not used any more.
    unsafe { OSSL_ENCODER_CTX_free(context) };
    written.ok_or_else(ErrorStack::get)
}

/// The public half of a key, for what is signed with the other: as OpenSSL's older type, which writes it without the
/// encoders that the newer one needs.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory.
pub fn public_half(key: &PKeyRef<Private>) -> Result<PKey<Public>, ErrorStack> {
    match key.id() {
        Id::EC => {
            let group = EcGroup::from_curve_name(der::curve(key)?.1)?;
            let point = EcPoint::from_bytes(&group, &der::point(key)?, &mut *BigNumContext::new()?)?;
            PKey::from_ec_key(EcKey::from_public_key(&group, &point)?)
        }
        Id::RSA => {
            let [modulus, exponent] = [c"n", c"e"].map(|name| der::number(key, name));
            PKey::from_rsa(Rsa::from_public_components(modulus?, exponent?)?)
        }
        _ => PKey::public_key_from_der(&key.public_key_to_der()?),
    }
}

/// Keys in DER, written here: OpenSSL's encoders are many, and take 64 KiB of every process that uses one of them.
mod der {
    use super::*;

    pub(super) const NULL: &[u8] = &[0x05, 0];
    /// 1.2.840.113549.1.1.1 (RFC 8017).
    pub(super) const RSA_ENCRYPTION: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    /// 1.2.840.10045.2.1 (RFC 5480).
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    /// The named curves of RFC 5480, and how long their numbers are.
    const CURVES: [(&[u8], Nid, i32); 3] = [
        (&[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], Nid::X9_62_PRIME256V1, 32),
        (&[0x06, 5, 0x2b, 0x81, 4, 0, 0x22], Nid::SECP384R1, 48),
        (&[0x06, 5, 0x2b, 0x81, 4, 0, 0x23], Nid::SECP521R1, 66),
    ];

    /// A field of these parts (X.690).
    fn field(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut field = Vec::with_capacity(len + 4);
        field.push(tag);
        match len {
            0..0x80 => field.push(len as u8),
            0x80..0x100 => field.extend([0x81, len as u8]),
            // Keys are far below 64 KiB.
            _ => field.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        parts.iter().for_each(|part| field.extend_from_slice(part));
        field
    }

    fn integer(bytes: &[u8]) -> Vec<u8> {
        let sign: &[u8] = if bytes.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
        field(0x02, &[sign, bytes])
    }

    /// PKCS#8 (RFC 5958) with this algorithm and key.
    pub(super) fn pkcs8(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
        field(0x30, &[&integer(&[0]), &field(0x30, algorithm), &field(0x04, &[key])])
    }

    /// SEC 1 (RFC 5915), alone or in PKCS#8, where the curve stands outside.
    pub(super) fn ec(key: &PKeyRef<Private>, alone: bool) -> Result<Vec<u8>, ErrorStack> {
        let (curve, _, len) = curve(key)?;
        let scalar = number(key, c"priv")?.to_vec_padded(len)?;
        let public = field(0xa1, &[&field(0x03, &[&[0], &point(key)?])]);
        let named = if alone { field(0xa0, &[curve]) } else { Vec::new() };
        let key = field(0x30, &[&integer(&[1]), &field(0x04, &[&scalar]), &named, &public]);
        Ok(if alone { key } else { pkcs8(&[EC_PUBLIC_KEY, curve], &key) })
    }

    /// PKCS#1 (RFC 8017, appendix A.1.2).
    pub(super) fn rsa(key: &PKeyRef<Private>) -> Result<Vec<u8>, ErrorStack> {
        let mut parts = vec![integer(&[0])];
        for name in
            [c"n", c"e", c"d", c"rsa-factor1", c"rsa-factor2", c"rsa-exponent1", c"rsa-exponent2", c"rsa-coefficient1"]
        {
            parts.push(integer(&number(key, name)?.to_vec()));
        }
        Ok(field(0x30, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    pub(super) fn curve(key: &PKeyRef<Private>) -> Result<(&'static [u8], Nid, i32), ErrorStack> {
        let bits = key.bits() as i32;
        // These three are the only ones with so many bits that are known here.
        CURVES.into_iter().find(|(.., len)| (len * 8 - 7..=len * 8).contains(&bits)).ok_or_else(ErrorStack::get)
    }

    /// The public point, uncompressed (SEC 1, section 2.3.3).
    pub(super) fn point(key: &PKeyRef<Private>) -> Result<Vec<u8>, ErrorStack> {
        let mut point = vec![0; 2 * curve(key)?.2 as usize + 1];
        let mut len = 0;
        // SAFETY: the key is alive, the name is a C string, and the vector has as many bytes as are told.
        let got = unsafe {
            EVP_PKEY_get_octet_string_param(
                key.as_ptr(),
                c"encoded-pub-key".as_ptr(),
                point.as_mut_ptr(),
                point.len(),
                &raw mut len,
            )
        };
        if got == 1 && len == point.len() && point[0] == 4 { Ok(point) } else { Err(ErrorStack::get()) }
    }

    pub(super) fn number(key: &PKeyRef<Private>, name: &CStr) -> Result<BigNum, ErrorStack> {
        let mut number = ptr::null_mut();
        // SAFETY: the key is alive, the name is a C string, and OpenSSL makes the number.
        let got = unsafe { EVP_PKEY_get_bn_param(key.as_ptr(), name.as_ptr(), &raw mut number) };
        if got != 1 || number.is_null() {
            return Err(ErrorStack::get());
        }
        // SAFETY: the number is new, and this is its owner.
        Ok(unsafe { BigNum::from_ptr(number) })
    }
}

/// PEM of these bytes, in lines of 64 characters.
fn armored(label: &str, der: &[u8]) -> Vec<u8> {
    const BYTES: usize = 48;
    let lines = der.len().div_ceil(BYTES);
    let mut pem = Vec::with_capacity(2 * ("-----BEGIN -----\n".len() + label.len()) + lines * 65);
    let edge = |pem: &mut Vec<u8>, what: &str| {
        for part in ["-----", what, " ", label, "-----\n"] {
            pem.extend_from_slice(part.as_bytes());
        }
    };
    edge(&mut pem, "BEGIN");
    for line in der.chunks(BYTES) {
        pem.extend_from_slice(encode_block(line).as_bytes());
        pem.push(b'\n');
    }
    edge(&mut pem, "END");
    pem
}

#[cfg(test)]
mod tests;
