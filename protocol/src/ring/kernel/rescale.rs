//! Division by the scale and composition of integers, both by mixed radix.
//!
//! The digits of `x mod Q` are `x = d_0 + d_1 q_0 + d_2 q_0 q_1 + ..` with `d_j` in `[0, q_j)`: modulo `q_j` all
//! later terms vanish, which gives `d_j` from residue `j` and the digits before. A vector of elements stays in
//! registers from its residues to its result.

use super::vectorised;
use super::words::{Modulus, Words};

vectorised! {
    /// Divides `x` in `[0, M)` by `Q`, where `M = P Q`, `P` the product of the `k` moduli `p` and `Q` of the `l`
    /// moduli `q`, all coprime: `out` is `floor(x / Q) mod p_i`, or, with `ceil`, `-floor(((M - x) mod M) / Q)
    /// mod p_i`, the ceiling. `planes` holds the `n` residues of each modulus, those of `p` first; `out` holds
    /// `n` of each of `p`.
    ///
    /// With `r = x mod Q` as mixed-radix digits `d_j` of weight `q_0 .. q_(j-1)`, the floor is
    /// `(x - r) / Q`, whose residue modulo `p_i` needs the digits only.
    ///
    /// # Panics
    /// If lengths disagree, a modulus is below 2, `q` has none or more than four, or they are not coprime.
    pub fn rescale(p: &[u8], q: &[u8], ceil: bool, planes: &[u8], n: usize, out: &mut [u8]) =
        rescale_body::<Words>
}

vectorised! {
    /// The integer in `[0, P)` with the given residues, `P < 2^32` the product of the one to four coprime moduli
    /// `p`; `planes` holds the `n` residues of each.
    ///
    /// # Panics
    /// If lengths disagree, a modulus is below 2, there are none or more than four, they are not coprime, or
    /// `P >= 2^32`.
    pub fn compose_u32(p: &[u8], planes: &[u8], n: usize, out: &mut [u32]) = compose_body::<Words>
}

/// # Safety
/// The processor has the instructions of `W`.
#[inline(always)]
unsafe fn rescale_body<W: Words>(p: &[u8], q: &[u8], ceil: bool, planes: &[u8], n: usize, out: &mut [u8]) {
    let k = p.len();
    assert!(planes.len() == (k + q.len()) * n && out.len() == k * n, "one plane per modulus");
    let radix = Radix::new(q);
    // floor(x / Q) mod p_i = x_i / Q - sum of d_j w_j / Q; the factor of x_i comes last.
    let outputs: Vec<(u8, [u8; 5])> = p
        .iter()
        .map(|&m| {
            assert!(m >= 2, "no residues modulo {m}");
            let scale = inverse(weight(q, m), m);
            let mut factors = [0; 5];
            for (j, factor) in factors[..q.len()].iter_mut().enumerate() {
                *factor = negative_product(weight(&q[..j], m), scale, m);
            }
            factors[4] = scale as u8;
            (m, factors)
        })
        .collect();
    // SAFETY: the caller knows the processor; `planes` and `out` have the lengths `rescale_span` needs.
    unsafe {
        match q.len() {
            1 => rescale_all::<W, 1>(&radix, &outputs, ceil, planes, n, out),
            2 => rescale_all::<W, 2>(&radix, &outputs, ceil, planes, n, out),
            3 => rescale_all::<W, 3>(&radix, &outputs, ceil, planes, n, out),
            _ => rescale_all::<W, 4>(&radix, &outputs, ceil, planes, n, out),
        }
    }
}

/// # Safety
/// The processor has the instructions of `W`; `planes` holds `n` bytes for each of `outputs` and `L` more moduli,
/// `out` for each of `outputs`.
#[inline(always)]
unsafe fn rescale_all<W: Words, const L: usize>(
    radix: &Radix<'_>,
    outputs: &[(u8, [u8; 5])],
    ceil: bool,
    planes: &[u8],
    n: usize,
    out: &mut [u8],
) {
    let whole = n - n % W::LANES;
    // SAFETY: the caller's promises; `[u16; 1]` is plain Rust.
    unsafe {
        rescale_span::<W, L>(radix, outputs, ceil, planes, n, 0..whole, out);
        rescale_span::<[u16; 1], L>(radix, outputs, ceil, planes, n, whole..n, out);
    }
}

/// # Safety
/// As `rescale_all`; `range` is inside `0..n` and a multiple of `LANES` long.
#[inline(always)]
unsafe fn rescale_span<W: Words, const L: usize>(
    radix: &Radix<'_>,
    outputs: &[(u8, [u8; 5])],
    ceil: bool,
    planes: &[u8],
    n: usize,
    range: std::ops::Range<usize>,
    out: &mut [u8],
) {
    if range.is_empty() {
        return;
    }
    // SAFETY: the caller's promises: `LANES` elements from `at` on are inside each of the planes.
    unsafe {
        let constants = radix.splat::<W, L>();
        let mut wide = Vec::with_capacity(outputs.len());
        for (m, factors) in outputs {
            let mut splats = [W::splat(0); 5];
            for (splat, &factor) in splats.iter_mut().zip(factors) {
                *splat = W::splat(u16::from(factor));
            }
            wide.push((Modulus::<W>::new(*m), splats));
        }
        let (first, rest) = planes.split_at(outputs.len() * n);
        for at in range.step_by(W::LANES) {
            let digits = constants.digits(rest.as_ptr().add(at), n, ceil);
            for (i, (modulus, factors)) in wide.iter().enumerate() {
                let mut x = W::load(first.as_ptr().add(i * n + at));
                if ceil {
                    x = modulus.neg(x);
                }
                let mut sum = modulus.lazy(x.mul_low(factors[4]));
                for (&digit, &factor) in digits.iter().zip(factors) {
                    sum = modulus.mul_add(digit, factor, sum);
                }
                let floor = modulus.once(sum);
                let result = if ceil { modulus.neg(floor) } else { floor };
                result.store(out.as_mut_ptr().add(i * n + at));
            }
        }
    }
}

/// # Safety
/// The processor has the instructions of `W`.
#[inline(always)]
unsafe fn compose_body<W: Words>(p: &[u8], planes: &[u8], n: usize, out: &mut [u32]) {
    assert!(planes.len() == p.len() * n && out.len() == n, "one plane per modulus");
    assert!(p.iter().map(|&m| u64::from(m)).product::<u64>() < 1 << 32, "the product must fit 32 bits");
    let radix = Radix::new(p);
    // SAFETY: the caller knows the processor; `planes` and `out` have the lengths `compose_all` needs.
    unsafe {
        match p.len() {
            1 => compose_all::<W, 1>(&radix, planes, n, out),
            2 => compose_all::<W, 2>(&radix, planes, n, out),
            3 => compose_all::<W, 3>(&radix, planes, n, out),
            _ => compose_all::<W, 4>(&radix, planes, n, out),
        }
    }
}

/// # Safety
/// The processor has the instructions of `W`; `planes` holds `n` bytes for each of `L` moduli, `out` `n` integers.
#[inline(always)]
unsafe fn compose_all<W: Words, const L: usize>(radix: &Radix<'_>, planes: &[u8], n: usize, out: &mut [u32]) {
    let whole = n - n % W::LANES;
    // SAFETY: the caller's promises; `[u16; 1]` is plain Rust.
    unsafe {
        compose_span::<W, L>(radix, planes, n, 0..whole, out);
        compose_span::<[u16; 1], L>(radix, planes, n, whole..n, out);
    }
}

/// # Safety
/// As `compose_all`; `range` is inside `0..n` and a multiple of `LANES` long.
#[inline(always)]
unsafe fn compose_span<W: Words, const L: usize>(
    radix: &Radix<'_>,
    planes: &[u8],
    n: usize,
    range: std::ops::Range<usize>,
    out: &mut [u32],
) {
    let moduli = radix.moduli;
    let modulus = |j: usize| moduli.get(j).map_or(0, |&m| u16::from(m));
    let upper_weight = u32::from(modulus(0)) * u32::from(modulus(1));
    let mut bytes = [[0u8; 64]; 4];
    // SAFETY: the caller's promises: `LANES <= 64` elements from `at` on are inside each of the planes.
    unsafe {
        let constants = radix.splat::<W, L>();
        for at in range.step_by(W::LANES) {
            let digits = constants.digits(planes.as_ptr().add(at), n, false);
            for (digit, bytes) in digits.into_iter().zip(&mut bytes) {
                digit.store(bytes.as_mut_ptr());
            }
            // x = (d_0 + q_0 d_1) + q_0 q_1 (d_2 + q_2 d_3), the halves in 16 bits: 254 + 255 * 254 < 2^16.
            for (i, out) in out[at..][..W::LANES].iter_mut().enumerate() {
                let [a, b, c, d] = [bytes[0][i], bytes[1][i], bytes[2][i], bytes[3][i]].map(u16::from);
                let low = a.wrapping_add(b.wrapping_mul(modulus(0)));
                let high = c.wrapping_add(d.wrapping_mul(modulus(2)));
                *out = u32::from(low).wrapping_add(u32::from(high).wrapping_mul(upper_weight));
            }
        }
    }
}

/// The product of `moduli` modulo `m`.
fn weight(moduli: &[u8], m: u8) -> u32 {
    moduli.iter().fold(1, |w, &q| w * u32::from(q) % u32::from(m))
}

/// `v^-1 mod m`.
fn inverse(v: u32, m: u8) -> u32 {
    let m = u32::from(m);
    (1..m).find(|i| v % m * i % m == 1).expect("the moduli are coprime")
}

/// `-a b mod m`.
fn negative_product(a: u32, b: u32, m: u8) -> u8 {
    let m = u32::from(m);
    ((m - a % m) % m * b % m) as u8
}

/// Factors of the mixed-radix digits: digit `j` is `factor[j][j]` times residue `j` plus `factor[j][i]` times
/// digit `i` for each `i < j`.
struct Radix<'a> {
    moduli: &'a [u8],
    factor: [[u8; 4]; 4],
}

impl<'a> Radix<'a> {
    fn new(moduli: &'a [u8]) -> Self {
        assert!((1..=4).contains(&moduli.len()) && moduli.iter().all(|&m| m >= 2), "one to four moduli");
        let mut factor = [[0; 4]; 4];
        for (j, &m) in moduli.iter().enumerate() {
            let scale = inverse(weight(&moduli[..j], m), m);
            for (i, factor) in factor[j][..j].iter_mut().enumerate() {
                *factor = negative_product(weight(&moduli[..i], m), scale, m);
            }
            factor[j][j] = scale as u8;
        }
        Self { moduli, factor }
    }

    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    unsafe fn splat<W: Words, const L: usize>(&self) -> Constants<W, L> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut constants =
                Constants { moduli: [Modulus::new(self.moduli[0]); L], factor: [[W::splat(0); L]; L] };
            for j in 0..L {
                constants.moduli[j] = Modulus::new(self.moduli[j]);
                for i in 0..=j {
                    constants.factor[j][i] = W::splat(u16::from(self.factor[j][i]));
                }
            }
            constants
        }
    }
}

/// [`Radix`] in every lane.
struct Constants<W, const L: usize> {
    moduli: [Modulus<W>; L],
    factor: [[W; L]; L],
}

impl<W: Words, const L: usize> Constants<W, L> {
    /// The digits of `LANES` numbers, of their negatives with `negate`.
    ///
    /// # Safety
    /// As all of [`Words`]; `residues + j * n` is readable for `LANES` bytes for all `j < L`.
    #[inline(always)]
    unsafe fn digits(&self, residues: *const u8, n: usize, negate: bool) -> [W; L] {
        // SAFETY: the caller's promises.
        unsafe {
            let mut digits = [W::splat(0); L];
            for j in 0..L {
                let modulus = self.moduli[j];
                let mut x = W::load(residues.add(j * n));
                if negate {
                    x = modulus.neg(x);
                }
                if j > 0 {
                    x = modulus.lazy(x.mul_low(self.factor[j][j]));
                    for (&digit, &factor) in digits[..j].iter().zip(&self.factor[j]) {
                        x = modulus.mul_add(digit, factor, x);
                    }
                    x = modulus.once(x);
                }
                digits[j] = x;
            }
            digits
        }
    }
}
