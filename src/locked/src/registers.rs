//! The vector registers, through which every copied key has gone.

/// Clears the vector registers. For the runtime's park hook: the kernel keeps a sleeping thread's registers, and
/// writes them into a core.
#[inline(never)]
pub fn clear_vector_registers() {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F. All vector registers are the caller's to save.
            unsafe { clear_upper_sixteen() };
        }
        if std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: the processor has AVX. The clobbers are told.
            unsafe { std::arch::asm!("vzeroall", clobber_abi("sysv64"), options(nomem, nostack)) };
        } else {
            clear_sse();
        }
    }
    #[cfg(target_arch = "aarch64")]
    clear_neon();
}

/// `vzeroall` leaves registers 16 to 31 alone, and libc's `memcpy` uses them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline(never)]
unsafe fn clear_upper_sixteen() {
    // SAFETY: the caller has found AVX-512F. The clobbers are told.
    unsafe {
        std::arch::asm!(
            "vpxorq zmm16, zmm16, zmm16",
            "vpxorq zmm17, zmm17, zmm17",
            "vpxorq zmm18, zmm18, zmm18",
            "vpxorq zmm19, zmm19, zmm19",
            "vpxorq zmm20, zmm20, zmm20",
            "vpxorq zmm21, zmm21, zmm21",
            "vpxorq zmm22, zmm22, zmm22",
            "vpxorq zmm23, zmm23, zmm23",
            "vpxorq zmm24, zmm24, zmm24",
            "vpxorq zmm25, zmm25, zmm25",
            "vpxorq zmm26, zmm26, zmm26",
            "vpxorq zmm27, zmm27, zmm27",
            "vpxorq zmm28, zmm28, zmm28",
            "vpxorq zmm29, zmm29, zmm29",
            "vpxorq zmm30, zmm30, zmm30",
            "vpxorq zmm31, zmm31, zmm31",
            clobber_abi("sysv64"),
            options(nomem, nostack),
        );
    }
}

#[cfg(target_arch = "x86_64")]
fn clear_sse() {
    // SAFETY: every x86-64 processor has SSE. The clobbers are told.
    unsafe {
        std::arch::asm!(
            "xorps xmm0, xmm0",
            "xorps xmm1, xmm1",
            "xorps xmm2, xmm2",
            "xorps xmm3, xmm3",
            "xorps xmm4, xmm4",
            "xorps xmm5, xmm5",
            "xorps xmm6, xmm6",
            "xorps xmm7, xmm7",
            "xorps xmm8, xmm8",
            "xorps xmm9, xmm9",
            "xorps xmm10, xmm10",
            "xorps xmm11, xmm11",
            "xorps xmm12, xmm12",
            "xorps xmm13, xmm13",
            "xorps xmm14, xmm14",
            "xorps xmm15, xmm15",
            clobber_abi("sysv64"),
            options(nomem, nostack),
        );
    }
}

/// The upper halves of v8 to v15 are the caller's to save, the lower ones ours: the compiler does it, told so.
#[cfg(target_arch = "aarch64")]
fn clear_neon() {
    // SAFETY: every aarch64 Linux has NEON. The clobbers are told.
    unsafe {
        std::arch::asm!(
            "movi v0.2d, #0", "movi v1.2d, #0", "movi v2.2d, #0", "movi v3.2d, #0",
            "movi v4.2d, #0", "movi v5.2d, #0", "movi v6.2d, #0", "movi v7.2d, #0",
            "movi v16.2d, #0", "movi v17.2d, #0", "movi v18.2d, #0", "movi v19.2d, #0",
            "movi v20.2d, #0", "movi v21.2d, #0", "movi v22.2d, #0", "movi v23.2d, #0",
            "movi v24.2d, #0", "movi v25.2d, #0", "movi v26.2d, #0", "movi v27.2d, #0",
            "movi v28.2d, #0", "movi v29.2d, #0", "movi v30.2d, #0", "movi v31.2d, #0",
            "movi v8.2d, #0", "movi v9.2d, #0", "movi v10.2d, #0", "movi v11.2d, #0",
            "movi v12.2d, #0", "movi v13.2d, #0", "movi v14.2d, #0", "movi v15.2d, #0",
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            clobber_abi("C"),
            options(nomem, nostack),
        );
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const PATTERN: [u8; 32] = [0xA5; 32];

    /// Fills ymm0 to ymm15, calls `between` if asked to, and reads them back.
    #[target_feature(enable = "avx")]
    fn through_the_registers(clear: bool) -> [[u8; 32]; 16] {
        let mut out = [[0_u8; 32]; 16];
        let clear = u64::from(clear);
        // SAFETY: the pattern and `out` are as long as what is read and written; the call is one of our functions,
        // whose clobbers are told; the stack is aligned as the ABI wants it, because asm! may use the stack.
        unsafe {
            std::arch::asm!(
                "vmovdqu ymm0, [r12]", "vmovdqu ymm1, [r12]", "vmovdqu ymm2, [r12]", "vmovdqu ymm3, [r12]",
                "vmovdqu ymm4, [r12]", "vmovdqu ymm5, [r12]", "vmovdqu ymm6, [r12]", "vmovdqu ymm7, [r12]",
                "vmovdqu ymm8, [r12]", "vmovdqu ymm9, [r12]", "vmovdqu ymm10, [r12]", "vmovdqu ymm11, [r12]",
                "vmovdqu ymm12, [r12]", "vmovdqu ymm13, [r12]", "vmovdqu ymm14, [r12]", "vmovdqu ymm15, [r12]",
                "test r14, r14",
                "jz 2f",
                "call {clear}",
                "2:",
                "vmovdqu [r13], ymm0", "vmovdqu [r13 + 32], ymm1", "vmovdqu [r13 + 64], ymm2",
                "vmovdqu [r13 + 96], ymm3", "vmovdqu [r13 + 128], ymm4", "vmovdqu [r13 + 160], ymm5",
                "vmovdqu [r13 + 192], ymm6", "vmovdqu [r13 + 224], ymm7", "vmovdqu [r13 + 256], ymm8",
                "vmovdqu [r13 + 288], ymm9", "vmovdqu [r13 + 320], ymm10", "vmovdqu [r13 + 352], ymm11",
                "vmovdqu [r13 + 384], ymm12", "vmovdqu [r13 + 416], ymm13", "vmovdqu [r13 + 448], ymm14",
                "vmovdqu [r13 + 480], ymm15",
                clear = sym called,
                in("r12") PATTERN.as_ptr(),
                in("r13") out.as_mut_ptr(),
                in("r14") clear,
                clobber_abi("sysv64"),
            );
        }
        out
    }

    extern "sysv64" fn called() {
        clear_vector_registers();
    }

    #[test]
    fn nothing_stays_in_the_vector_registers() {
        if !std::arch::is_x86_feature_detected!("avx") {
            return;
        }
        // SAFETY: the processor has AVX.
        assert_eq!(unsafe { through_the_registers(false) }, [PATTERN; 16]);
        // SAFETY: the processor has AVX.
        assert_eq!(unsafe { through_the_registers(true) }, [[0; 32]; 16]);
    }
}

#[cfg(all(test, target_arch = "aarch64"))]
mod tests {
    use super::*;

    const PATTERN: [u8; 16] = [0xA5; 16];

    /// Fills v0 to v31, calls what clears them if asked to, and reads them back.
    fn through_the_registers(clear: bool) -> [[u8; 16]; 32] {
        let mut out = [[0_u8; 16]; 32];
        // SAFETY: the pattern and `out` are as long as what is read and written; the call is one of our functions, whose
        // clobbers are told, as is that v8 to v15 change, the halves that it saves included; the registers with the
        // addresses are among those that a function saves.
        unsafe {
            std::arch::asm!(
                "ldr q0, [x20]",
                "mov v1.16b, v0.16b", "mov v2.16b, v0.16b", "mov v3.16b, v0.16b", "mov v4.16b, v0.16b",
                "mov v5.16b, v0.16b", "mov v6.16b, v0.16b", "mov v7.16b, v0.16b", "mov v8.16b, v0.16b",
                "mov v9.16b, v0.16b", "mov v10.16b, v0.16b", "mov v11.16b, v0.16b", "mov v12.16b, v0.16b",
                "mov v13.16b, v0.16b", "mov v14.16b, v0.16b", "mov v15.16b, v0.16b", "mov v16.16b, v0.16b",
                "mov v17.16b, v0.16b", "mov v18.16b, v0.16b", "mov v19.16b, v0.16b", "mov v20.16b, v0.16b",
                "mov v21.16b, v0.16b", "mov v22.16b, v0.16b", "mov v23.16b, v0.16b", "mov v24.16b, v0.16b",
                "mov v25.16b, v0.16b", "mov v26.16b, v0.16b", "mov v27.16b, v0.16b", "mov v28.16b, v0.16b",
                "mov v29.16b, v0.16b", "mov v30.16b, v0.16b", "mov v31.16b, v0.16b",
                "cbz x22, 2f",
                "bl {clear}",
                "2:",
                "stp q0, q1, [x21]", "stp q2, q3, [x21, #32]", "stp q4, q5, [x21, #64]", "stp q6, q7, [x21, #96]",
                "stp q8, q9, [x21, #128]", "stp q10, q11, [x21, #160]", "stp q12, q13, [x21, #192]",
                "stp q14, q15, [x21, #224]", "stp q16, q17, [x21, #256]", "stp q18, q19, [x21, #288]",
                "stp q20, q21, [x21, #320]", "stp q22, q23, [x21, #352]", "stp q24, q25, [x21, #384]",
                "stp q26, q27, [x21, #416]", "stp q28, q29, [x21, #448]", "stp q30, q31, [x21, #480]",
                clear = sym called,
                in("x20") PATTERN.as_ptr(),
                in("x21") out.as_mut_ptr(),
                in("x22") u64::from(clear),
                out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                out("v12") _, out("v13") _, out("v14") _, out("v15") _,
                clobber_abi("C"),
            );
        }
        out
    }

    extern "C" fn called() {
        clear_vector_registers();
    }

    /// Of v8 to v15 the lower halves are the caller's: they come back as they were, and it is the caller that keeps
    /// no key there.
    #[test]
    fn nothing_stays_in_the_vector_registers_but_what_the_caller_keeps() {
        assert_eq!(through_the_registers(false), [PATTERN; 32]);
        for (number, left) in through_the_registers(true).iter().enumerate() {
            let (kept, cleared) = left.split_at(if (8..16).contains(&number) { 8 } else { 0 });
            assert!(kept.iter().all(|byte| *byte == 0xA5), "v{number}: {left:x?}");
            assert!(cleared.iter().all(|byte| *byte == 0), "v{number}: {left:x?}");
        }
    }
}
