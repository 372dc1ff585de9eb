//! AES in XTS mode, sector by sector, as LUKS numbers them ("xts-plain64").
//!
//! Reference: IEEE 1619-2007 §5 "XTS-AES transform"; sectors are whole blocks, so nothing is stolen.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256, Block};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const BLOCK: usize = 16;
const BLOCKS: usize = SECTOR / BLOCK;

enum Aes {
    Aes128(Box<Aes128>),
    Aes256(Box<Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(|aes| Self::Aes128(Box::new(aes))),
            32 => Aes256::new_from_slice(key).ok().map(|aes| Self::Aes256(Box::new(aes))),
            _ => None,
        }
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(aes) => aes.encrypt_blocks(blocks),
            Self::Aes256(aes) => aes.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(aes) => aes.decrypt_blocks(blocks),
            Self::Aes256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// A key for data, and one for the sectors' numbers.
pub struct AesXts {
    data: Aes,
    tweak: Aes,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From plain data.
    Encrypt,
    /// To plain data.
    Decrypt,
}

impl AesXts {
    /// Both keys, one behind the other: 32 or 64 bytes; `None` for another length.
    pub fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        Some(Self { data: Aes::new(data)?, tweak: Aes::new(tweak)? })
    }

    /// Encrypt or decrypt sectors in place, the first of which has the number `sector`.
    ///
    /// What is behind the last whole sector stays as it is.
    pub fn crypt(&self, sector: u64, data: &mut [u8], direction: Direction) {
        for (index, sector_data) in data.chunks_exact_mut(SECTOR).enumerate() {
            self.crypt_sector(sector.wrapping_add(index as u64), sector_data, direction);
        }
    }

    fn crypt_sector(&self, number: u64, data: &mut [u8], direction: Direction) {
        let masks = self.masks(number);
        let mut blocks = [Block::default(); BLOCKS];
        for ((block, bytes), mask) in blocks.iter_mut().zip(data.chunks_exact(BLOCK)).zip(&masks) {
            block.copy_from_slice(bytes);
            mask_block(block, *mask);
        }
        match direction {
            Direction::Encrypt => self.data.encrypt(&mut blocks),
            Direction::Decrypt => self.data.decrypt(&mut blocks),
        }
        for ((block, bytes), mask) in blocks.iter_mut().zip(data.chunks_exact_mut(BLOCK)).zip(&masks) {
            mask_block(block, *mask);
            bytes.copy_from_slice(block);
        }
    }

    /// The encrypted number, times the powers of alpha.
    fn masks(&self, number: u64) -> [u128; BLOCKS] {
        let mut block = Block::default();
        block[..8].copy_from_slice(&number.to_le_bytes());
        self.tweak.encrypt(std::slice::from_mut(&mut block));
        let mut mask = u128::from_le_bytes(block.into());
        let mut masks = [0; BLOCKS];
        for place in &mut masks {
            *place = mask;
            mask = (mask << 1) ^ ((mask >> 127) * 0x87);
        }
        masks
    }
}

fn mask_block(block: &mut Block, mask: u128) {
    let plain = u128::from_le_bytes((*block).into());
    *block = (plain ^ mask).to_le_bytes().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    /// IEEE 1619-2007 annex B "Test vectors", 4 (AES-128) and 10 (AES-256): the first and the last block.
    #[test]
    fn vectors_of_the_standard() {
        let vectors = [
            (
                "2718281828459045235360287471352631415926535897932384626433832795",
                0,
                "27a7479befa1d476489f308cd4cfa6e2",
                "0a282df920147beabe421ee5319d0568",
            ),
            (
                "2718281828459045235360287471352662497757247093699959574966967627\
                 3141592653589793238462643383279502884197169399375105820974944592",
                0xff,
                "1c3b3a102f770386e4836c99e370cf9b",
                "c4f36ffda9fcea70b9c6e693e148c151",
            ),
        ];
        let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
        for (key, sector, first, last) in vectors {
            let xts = AesXts::new(&bytes(key)).expect("a length that is known");
            let mut data = plain.clone();
            xts.crypt(sector, &mut data, Direction::Encrypt);
            assert_eq!((&data[..BLOCK], &data[SECTOR - BLOCK..]), (&bytes(first)[..], &bytes(last)[..]));
            xts.crypt(sector, &mut data, Direction::Decrypt);
            assert_eq!(data, plain);
        }
    }

    #[test]
    fn sectors_follow_each_other() {
        let key: Vec<u8> = (0..64).collect();
        let xts = AesXts::new(&key).expect("64 bytes");
        let (mut both, mut second) = (vec![7; 2 * SECTOR], vec![7; SECTOR]);
        xts.crypt(u64::MAX - 1, &mut both, Direction::Encrypt);
        xts.crypt(u64::MAX, &mut second, Direction::Encrypt);
        assert_eq!(both[SECTOR..], second);
        xts.crypt(u64::MAX - 1, &mut both, Direction::Decrypt);
        assert_eq!(both, [7; 2 * SECTOR]);
    }

    #[test]
    fn keys_of_other_lengths_are_none() {
        for size in [0, 16, 33, 48, 65] {
            assert!(AesXts::new(&vec![1; size]).is_none());
        }
    }
}
