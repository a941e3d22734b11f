//! Random numbers that are the same on every machine. For weights of examples, and for nothing else.

use rayon::prelude::*;

/// Numbers drawn from one stream.
const RUN: usize = 1 << 14;

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    /// A stream of its own for each name.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), hash))
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `lo` to `hi`.
    pub(super) fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Two of mean 0 and variance 1, by Box and Muller.
    fn pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.uniform(0.0, 1.0)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform(0.0, 1.0)).sin_cos();
        [radius * sin, radius * cos]
    }
}

/// `n` numbers of mean 0 and this standard deviation.
pub(super) fn normal(n: usize, deviation: f64, seed: u64, name: &str) -> Vec<f32> {
    let start = Random::new(seed, name).0;
    let mut out = vec![0f32; n];
    out.par_chunks_mut(RUN).enumerate().for_each(|(i, run)| {
        let mut random = Random(start ^ (i as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        for two in run.chunks_mut(2) {
            two.iter_mut().zip(random.pair()).for_each(|(o, v)| *o = (deviation * v) as f32);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let v = normal(100_001, 0.5, 1, "a");
        let mean = v.iter().map(|&v| f64::from(v)).sum::<f64>() / v.len() as f64;
        let square = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.01 && (square - 0.25).abs() < 0.005, "{mean} {square}");
        assert_ne!(v, normal(100_001, 0.5, 1, "b"));
    }
}
