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
