//! Which elements of a masked memory operand are accessed: EVEX instructions suppress the faults of
//! elements that their opmask leaves out (Intel SDM vol. 1 §15.6.4 "Memory Fault Suppression"),
//! except those whose elements change places (vol. 2A §2.8, exception types E4NF, E5NF and E6NF).

use iced_x86::{Instruction, Mnemonic, OpKind};

/// Bytes of an element of the memory operand, and the number of opmask bits that select elements, of
/// an EVEX instruction whose mask suppresses faults; `None` for all others.
pub(super) fn masked_elements(instruction: &Instruction, size: usize) -> Option<(usize, usize)> {
    if !instruction.has_op_mask() || moves_elements(instruction) {
        return None;
    }
    let op = instruction.op_code();
    let element = match op.can_broadcast() {
        true => op.broadcast_memory_size().size(),
        false => op.memory_size().element_size(),
    };
    let element = element.clamp(1, 8);
    let repeats = is_vector_broadcast(instruction.mnemonic());
    let whole = if repeats { instruction.op0_register().size() } else { op.memory_size().size() };
    Some((element.min(size), (whole / element).clamp(1, 64)))
}

/// Instructions that fill a register with copies of their memory operand.
fn is_vector_broadcast(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vbroadcastss
            | M::Vbroadcastsd
            | M::Vbroadcastf32x2
            | M::Vbroadcastf32x4
            | M::Vbroadcastf64x2
            | M::Vbroadcastf32x8
            | M::Vbroadcastf64x4
            | M::Vbroadcasti32x2
            | M::Vbroadcasti32x4
            | M::Vbroadcasti64x2
            | M::Vbroadcasti32x8
            | M::Vbroadcasti64x4
            | M::Vpbroadcastb
            | M::Vpbroadcastw
            | M::Vpbroadcastd
            | M::Vpbroadcastq
    )
}

/// Instructions that read all of their memory operand whatever the mask says.
fn moves_elements(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Vpsllw
        | M::Vpslld
        | M::Vpsllq
        | M::Vpsrlw
        | M::Vpsrld
        | M::Vpsrlq
        | M::Vpsraw
        | M::Vpsrad
        | M::Vpsraq => {
            // A count in memory, not an immediate.
            instruction.op2_kind() == OpKind::Memory
        }
        mnemonic => is_shuffle(mnemonic) || is_permutation(mnemonic) || is_unpack_or_pack(mnemonic),
    }
}

fn is_shuffle(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vshufps
            | M::Vshufpd
            | M::Vshuff32x4
            | M::Vshuff64x2
            | M::Vshufi32x4
            | M::Vshufi64x2
            | M::Vpshufb
            | M::Vpshufd
            | M::Vpshufhw
            | M::Vpshuflw
            | M::Vmovddup
            | M::Vmovshdup
            | M::Vmovsldup
            | M::Valignd
            | M::Valignq
            | M::Vpalignr
            | M::Vinsertf32x4
            | M::Vinsertf64x2
            | M::Vinsertf32x8
            | M::Vinsertf64x4
            | M::Vinserti32x4
            | M::Vinserti64x2
            | M::Vinserti32x8
            | M::Vinserti64x4
            | M::Vextractf32x4
            | M::Vextractf64x2
            | M::Vextractf32x8
            | M::Vextractf64x4
            | M::Vextracti32x4
            | M::Vextracti64x2
            | M::Vextracti32x8
            | M::Vextracti64x4
    )
}

fn is_permutation(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vpermb
            | M::Vpermw
            | M::Vpermd
            | M::Vpermq
            | M::Vpermps
            | M::Vpermpd
            | M::Vpermilps
            | M::Vpermilpd
            | M::Vpermi2b
            | M::Vpermi2w
            | M::Vpermi2d
            | M::Vpermi2q
            | M::Vpermi2ps
            | M::Vpermi2pd
            | M::Vpermt2b
            | M::Vpermt2w
            | M::Vpermt2d
            | M::Vpermt2q
            | M::Vpermt2ps
            | M::Vpermt2pd
            | M::Vpconflictd
            | M::Vpconflictq
            | M::Vpmultishiftqb
            | M::Vgf2p8affineqb
            | M::Vgf2p8affineinvqb
    )
}

fn is_unpack_or_pack(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vunpcklps
            | M::Vunpcklpd
            | M::Vunpckhps
            | M::Vunpckhpd
            | M::Vpunpcklbw
            | M::Vpunpcklwd
            | M::Vpunpckldq
            | M::Vpunpcklqdq
            | M::Vpunpckhbw
            | M::Vpunpckhwd
            | M::Vpunpckhdq
            | M::Vpunpckhqdq
            | M::Vpacksswb
            | M::Vpackssdw
            | M::Vpackuswb
            | M::Vpackusdw
            | M::Vpmaddubsw
            | M::Vpmaddwd
            | M::Vdbpsadbw
            | M::Vcvtne2ps2bf16
    )
}

#[cfg(test)]
mod tests {
    use super::masked_elements;
    use iced_x86::{Decoder, DecoderOptions};

    fn of(bytes: &[u8]) -> Option<(usize, usize)> {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        masked_elements(&instruction, instruction.memory_size().size())
    }

    #[test]
    fn elements_are_what_the_mask_counts() {
        // vaddps zmm1 {k1}, zmm2, [rax]; the same with a broadcast dword
        assert_eq!(of(&[0x62, 0xf1, 0x6c, 0x49, 0x58, 0x08]), Some((4, 16)));
        assert_eq!(of(&[0x62, 0xf1, 0x6c, 0x59, 0x58, 0x08]), Some((4, 16)));
        // vbroadcastf32x4 zmm1 {k1}, [rax]: 16 bits for 4 elements
        assert_eq!(of(&[0x62, 0xf2, 0x7d, 0x49, 0x1a, 0x08]), Some((4, 16)));
    }

    #[test]
    fn without_a_mask_or_with_a_shuffle_all_is_accessed() {
        // vaddps zmm1, zmm2, [rax]; vshufps zmm1 {k1}, zmm2, [rax], 0
        assert_eq!(of(&[0x62, 0xf1, 0x6c, 0x48, 0x58, 0x08]), None);
        assert_eq!(of(&[0x62, 0xf1, 0x6c, 0x49, 0xc6, 0x08, 0x00]), None);
    }
}
