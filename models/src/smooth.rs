//! Smooth functions of one number: what networks bend with besides the ReLU family.
//!
//! A function is level, or straight with a known slope, far from zero; in between it becomes cubics on pieces
//! ([`sharelens_ops::real::Piecewise`]), fitted when a network is prepared.

use serde::{Deserialize, Serialize};
use sharelens_ops::real::Piecewise;

use crate::error::{Error, Result};

/// A function by its name in ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smooth {
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
    /// x sigmoid(x), also called Swish.
    Silu,
    /// x min(max(x/6 + 1/2, 0), 1).
    HardSwish,
    /// x Phi(x), with the distribution function of the normal distribution.
    Gelu,
    /// The same by the hyperbolic tangent of a cubic, as many networks are trained.
    GeluTanh,
    /// x tanh(ln(1 + e^x)).
    Mish,
    /// ln(1 + e^x).
    Softplus,
    /// x, and alpha (e^x - 1) below zero, times gamma. With alpha near 1.67 and gamma near 1.05 it is SELU.
    Elu {
        /// How far it falls.
        alpha: f32,
        /// Factor of the whole.
        gamma: f32,
    },
}

/// Where every function here is within a millionth of its ends, but for [`Smooth::Elu`] with large factors.
const FAR: f64 = 20.0;

impl Smooth {
    /// No piece of any function ends farther from zero.
    pub const FARTHEST: f64 = FAR;

    /// A word for reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Erf => "erf",
            Self::Silu => "silu",
            Self::HardSwish => "hard swish",
            Self::Gelu | Self::GeluTanh => "gelu",
            Self::Mish => "mish",
            Self::Softplus => "softplus",
            Self::Elu { .. } => "elu",
        }
    }

    /// The function.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => x.tanh(),
            Self::Erf => erf(x),
            Self::Silu => x * sigmoid(x),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Mish => x * softplus(x).tanh(),
            Self::Softplus => softplus(x),
            Self::Elu { alpha, gamma } => {
                let y = if x < 0.0 { f64::from(alpha) * x.exp_m1() } else { x };
                f64::from(gamma) * y
            }
        }
    }

    /// Slope far to the right.
    fn slope(self) -> f64 {
        match self {
            Self::Sigmoid | Self::Tanh | Self::Erf => 0.0,
            Self::Elu { gamma, .. } => gamma.into(),
            _ => 1.0,
        }
    }

    /// Whether its settings are numbers that are used.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Elu { alpha, gamma } => {
                alpha.is_finite() && (0.0..=16.0).contains(&alpha) && (0.01..=16.0).contains(&gamma)
            }
            _ => true,
        }
    }

    /// All values of arguments from `lo` to `hi` lie between these.
    pub fn interval(self, (lo, hi): (f64, f64)) -> (f64, f64) {
        // Least value of the functions that fall before they rise.
        let dip = match self {
            Self::Silu => -0.2785,
            Self::HardSwish => -0.375,
            Self::Gelu | Self::GeluTanh => -0.1701,
            Self::Mish => -0.3089,
            // The others rise everywhere.
            _ => return (self.value(lo), self.value(hi)),
        };
        let (low, high) = (self.value(lo), self.value(hi));
        let least = if lo < 0.0 { dip } else { low };
        (least, if hi > 0.0 { high.max(0.0) } else { 0.0 })
    }

    /// Cubics that miss it by at most about `tolerance`.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] if there are none.
    pub fn fit(self, tolerance: f64) -> Result<Piecewise> {
        let slope = self.slope();
        let end = |x: f64| self.value(x) - slope * x;
        let close = |x: f64, far: f64| (end(x) - end(far)).abs() <= 0.4 * tolerance;
        // From far away towards zero for as long as it is level or straight.
        let from = |far: f64, level: &dyn Fn(f64) -> bool| {
            (0..=256)
                .map(|i| far * f64::from(256 - i) / 256.0)
                .take_while(|x| level(*x))
                .last()
                .unwrap_or(far)
        };
        let (lo, hi) = match self {
            Self::HardSwish => (-3.0, 3.0),
            _ => {
                let left = from(-FAR, &|x| (self.value(x) - self.value(-FAR)).abs() <= 0.4 * tolerance);
                (left, from(FAR, &|x| close(x, FAR)))
            }
        };
        let fit = Piecewise::fit(|x| self.value(x), lo, hi, 0.6 * tolerance);
        let fit = fit.map_err(|e| Error::Range(format!("{}: {e}", self.label())))?;
        Ok(fit.going_on(slope))
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The error function to 1e-9: its power series near zero, elsewhere its end, which it is that close to.
fn erf(x: f64) -> f64 {
    if x.abs() >= 4.4 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..90 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Smooth; 11] = [
        Smooth::Sigmoid,
        Smooth::Tanh,
        Smooth::Erf,
        Smooth::Silu,
        Smooth::HardSwish,
        Smooth::Gelu,
        Smooth::GeluTanh,
        Smooth::Mish,
        Smooth::Softplus,
        Smooth::Elu { alpha: 1.0, gamma: 1.0 },
        Smooth::Elu { alpha: 1.673_263_2, gamma: 1.050_701 },
    ];

    #[test]
    fn cubics_meet_every_function_everywhere() {
        for f in ALL {
            for tolerance in [1e-2, 1e-3, 1e-4] {
                let fit = f.fit(tolerance).expect("fits");
                for i in -40_000..=40_000 {
                    let x = f64::from(i) / 1000.0;
                    let miss = (fit.value(x) - f.value(x)).abs();
                    assert!(miss <= 1.05 * tolerance, "{f:?} at {x}: {miss:.2e} of {tolerance:.0e}");
                }
            }
        }
        assert_eq!(Smooth::HardSwish.fit(1e-6).expect("fits").pieces(), 1, "it is one quadratic");
        assert!(Smooth::Silu.fit(1e-3).expect("fits").pieces() <= 8);
    }

    #[test]
    fn values_are_known() {
        // To nine places, from tables.
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265), (4.3, 1.0)]
        {
            assert!((erf(x) - y).abs() < 2e-9 && (erf(-x) + y).abs() < 2e-9, "erf {x}");
        }
        assert!((Smooth::Gelu.value(1.0) - 0.841_344_746).abs() < 1e-9);
        assert!((Smooth::Silu.value(-2.0) + 0.238_405_844).abs() < 1e-9);
        assert!((Smooth::Softplus.value(800.0) - 800.0).abs() < 1e-12);
        assert!((Smooth::Mish.value(-1.0) + 0.303_401_463).abs() < 1e-8);
    }

    #[test]
    fn intervals_hold_all_values() {
        for f in ALL {
            for (a, b) in [(-30.0, 30.0), (-3.0, -0.1), (0.2, 5.0), (-0.5, 0.1), (-1.0, -1.0)] {
                let (lo, hi) = f.interval((a, b));
                for i in 0..=1000 {
                    let y = f.value(a + (b - a) * f64::from(i) / 1000.0);
                    assert!(lo - 1e-9 <= y && y <= hi + 1e-9, "{f:?} on [{a}, {b}]: {y} not in [{lo}, {hi}]");
                }
            }
        }
    }
}
