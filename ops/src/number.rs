//! Real numbers in fixed point: vectors that know their scale and how large they can be.
//!
//! Scale and bound are public and follow from shapes and settings alone, so every range is checked when a
//! network is planned: what could overflow is refused there, by the same code that runs later.

use sharelens_protocol::ring::{Domain, Full, Range, Reduced};
use sharelens_protocol::{Error, Result, Step};

use crate::engine::Engine;
use crate::layers::Calls;
use crate::plain::Bounds;

/// What functions of real numbers need besides an engine: numbers for their calls, and the ranges of the ring.
#[derive(Debug)]
pub struct Scope {
    calls: Calls,
    bounds: Bounds,
}

impl Scope {
    /// For the layer of `at`, from its first call.
    pub const fn new(at: Step, bounds: Bounds) -> Self {
        Self { calls: Calls::new(at), bounds }
    }

    /// The step of the next call.
    pub fn step(&mut self) -> Step {
        self.calls.step()
    }

    /// The ranges of the ring.
    pub const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Refuses integers up to `largest` where they would leave the smaller range.
    ///
    /// # Errors
    /// [`Error::Config`] naming `what`.
    pub fn check_reduced(&self, largest: f64, what: &str) -> Result<()> {
        let allowed = self.bounds.reduced;
        if largest <= allowed as f64 {
            return Ok(());
        }
        Err(Error::Config(format!(
            "{what} reach {largest:.3e}, and the range of comparisons ends at {allowed}"
        )))
    }
}

/// Real numbers y as the integers round(y * scale), |y| <= bound.
pub struct Number<E: Engine, D: Domain> {
    v: E::V<D>,
    scale: f64,
    bound: f64,
}

impl<E: Engine, D: Domain> Clone for Number<E, D> {
    fn clone(&self) -> Self {
        Self { v: self.v.clone(), ..*self }
    }
}

impl<E: Engine, D: Domain> Number<E, D> {
    /// `v` at `scale`, of magnitude at most `bound`.
    ///
    /// # Errors
    /// [`Error::Config`] if that leaves the range of the domain.
    pub fn new(scope: &Scope, v: E::V<D>, scale: f64, bound: f64) -> Result<Self> {
        let allowed = match D::RANGE {
            Range::Full => scope.bounds.full,
            Range::Reduced => scope.bounds.reduced,
        };
        if !(scale > 0.0 && bound >= 0.0 && bound * scale <= allowed as f64) {
            return Err(Error::Config(format!(
                "numbers up to {bound:.4} at scale {scale:.1} leave the range of {:?}, which ends at {allowed}",
                D::RANGE
            )));
        }
        Ok(Self { v, scale, bound })
    }

    /// The integers.
    pub const fn integers(&self) -> &E::V<D> {
        &self.v
    }

    /// The integers, given away.
    pub fn into_integers(self) -> E::V<D> {
        self.v
    }

    /// Integers per unit.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// Largest magnitude.
    pub const fn bound(&self) -> f64 {
        self.bound
    }

    /// Elements.
    pub fn len(&self, e: &E) -> usize {
        e.len(&self.v)
    }

    /// The same numbers, known to be smaller than their bound says.
    #[must_use]
    pub fn within(self, bound: f64) -> Self {
        Self { bound: bound.min(self.bound), ..self }
    }

    /// `a + b` at the same scale. Local.
    ///
    /// # Errors
    /// As [`Number::new`], and if the scales differ.
    pub fn add(&self, e: &mut E, scope: &Scope, other: &Self) -> Result<Self> {
        same_scale(self.scale, other.scale)?;
        let v = e.add(&self.v, &other.v);
        Self::new(scope, v, self.scale, self.bound + other.bound)
    }

    /// `a - b` at the same scale. Local.
    ///
    /// # Errors
    /// As [`Number::new`], and if the scales differ.
    pub fn sub(&self, e: &mut E, scope: &Scope, other: &Self) -> Result<Self> {
        same_scale(self.scale, other.scale)?;
        let v = e.sub(&self.v, &other.v);
        Self::new(scope, v, self.scale, self.bound + other.bound)
    }

    /// `factor * a`, at the same scale. Local.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn times(&self, e: &mut E, scope: &Scope, factor: i64) -> Result<Self> {
        let v = e.scale(&self.v, factor);
        Self::new(scope, v, self.scale, self.bound * factor.unsigned_abs() as f64)
    }

    /// `a` at a scale `factor` times as large. Local.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn finer(&self, e: &mut E, scope: &Scope, factor: i64) -> Result<Self> {
        let v = e.scale(&self.v, factor);
        Self::new(scope, v, self.scale * factor as f64, self.bound)
    }

    /// `a + constants`, repeated along `a`, whose length they divide. Local.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn add_public(&self, e: &mut E, scope: &Scope, constants: &[f64]) -> Result<Self> {
        let largest = constants.iter().fold(0f64, |a, c| a.max(c.abs()));
        let integers: Vec<i64> = constants.iter().map(|c| (c * self.scale).round() as i64).collect();
        let v = e.add_public(&self.v, &integers);
        Self::new(scope, v, self.scale, self.bound + largest)
    }

    /// The numbers at public places; [`crate::engine::ZERO`] reads as zero. Local.
    #[must_use]
    pub fn gather(&self, e: &mut E, index: &[u32]) -> Self {
        Self { v: e.gather(&[&self.v], index), ..*self }
    }

    /// As [`Number::gather`], for `len` places that are listed only by engines that read them. Local.
    #[must_use]
    pub fn gather_by(&self, e: &mut E, len: usize, index: impl FnOnce() -> Vec<u32>) -> Self {
        Self { v: e.gather_by(&[&self.v], len, index), ..*self }
    }

    /// All of `parts`, which have one scale, one after the other. Local.
    ///
    /// # Errors
    /// If the scales differ.
    pub fn join(e: &mut E, parts: &[&Self]) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::Config("nothing to join".into()))?;
        let mut bound = 0f64;
        for part in parts {
            same_scale(first.scale, part.scale)?;
            bound = bound.max(part.bound);
        }
        let v = crate::layers::join(e, &parts.iter().map(|p| &p.v).collect::<Vec<_>>());
        Ok(Self { v, scale: first.scale, bound })
    }
}

impl<E: Engine> Number<E, Full> {
    /// The same in the smaller range. Local.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn reduce(&self, e: &mut E, scope: &Scope) -> Result<Number<E, Reduced>> {
        let v = e.reduce(&self.v);
        Number::new(scope, v, self.scale, self.bound)
    }

    /// The same numbers at a much larger scale, by an integer factor; that rounds the scale by at most half a
    /// factor, hence the numbers by a known fraction below 2^-12. Local.
    ///
    /// # Errors
    /// If the factor is too small, and as [`Number::new`].
    pub fn align(&self, e: &mut E, scope: &Scope, scale: f64) -> Result<Self> {
        let factor = (scale / self.scale).round();
        if !(2048.0..1e15).contains(&factor) {
            return Err(Error::Config(format!(
                "scale {:.1} is too close to {scale:.1} to be aligned",
                self.scale
            )));
        }
        let v = e.scale(&self.v, factor as i64);
        Self::new(scope, v, scale, self.bound)
    }

    /// `x * y` elementwise, at the product of the scales. One round.
    ///
    /// # Errors
    /// As [`Number::new`] and the engine.
    pub async fn mul(&self, e: &mut E, scope: &mut Scope, other: &Self) -> Result<Self> {
        let v = e.mul(scope.step(), &self.v, &other.v).await?;
        Self::new(scope, v, self.scale * other.scale, self.bound * other.bound)
    }

    /// The same numbers at about `scale`, in the smaller range: an integer factor, then a rescale. The scale
    /// that results is within half a factor of what was asked for and is known exactly. No round in the residue
    /// number system, one in Z_2^64. The result is off by less than one unit of its scale.
    ///
    /// # Errors
    /// If no factor fits, and as [`Number::new`] and the engine.
    pub async fn rescale(&self, e: &mut E, scope: &mut Scope, scale: f64) -> Result<Number<E, Reduced>> {
        let divisor = scope.bounds.divisor as f64;
        let room = scope.bounds.full as f64 / (self.bound * self.scale).max(1.0);
        let factor = (scale * divisor / self.scale).round().max(1.0);
        if factor > room {
            return Err(Error::Config(format!(
                "numbers up to {:.4} at scale {:.1} cannot be brought to scale {scale:.1}",
                self.bound, self.scale
            )));
        }
        let scaled = if factor == 1.0 { self.v.clone() } else { e.scale(&self.v, factor as i64) };
        let v = e.rescale(scope.step(), &scaled).await?;
        let scale = self.scale * factor / divisor;
        Number::new(scope, v, scale, self.bound + 1.0 / scale)
    }
}

impl<E: Engine> Number<E, Reduced> {
    /// Refuses numbers that are too large to be lifted.
    ///
    /// # Errors
    /// [`Error::Config`] if they may reach P/4.
    pub fn check_lift(&self, scope: &Scope) -> Result<()> {
        if self.bound * self.scale < scope.bounds.lift as f64 {
            return Ok(());
        }
        Err(Error::Config(format!(
            "numbers up to {:.4} at scale {:.1} cannot be lifted",
            self.bound, self.scale
        )))
    }

    /// The same in the larger range. One round in the residue number system, none in Z_2^64.
    ///
    /// # Errors
    /// If the numbers may reach P/4, and as the engine.
    pub async fn lift(&self, e: &mut E, scope: &mut Scope) -> Result<Number<E, Full>> {
        self.check_lift(scope)?;
        let v = e.lift(scope.step(), &self.v).await?;
        Number::new(scope, v, self.scale, self.bound)
    }

    /// max(x, 0) in the larger range.
    ///
    /// # Errors
    /// As the engine.
    pub async fn relu(&self, e: &mut E, scope: &mut Scope) -> Result<Number<E, Full>> {
        let v = e.relu(scope.step(), &self.v).await?;
        Number::new(scope, v, self.scale, self.bound)
    }

    /// 1 where x < 0, else 0, as integers.
    ///
    /// # Errors
    /// As the engine.
    pub async fn is_negative(&self, e: &mut E, scope: &mut Scope) -> Result<Number<E, Full>> {
        let v = e.is_negative(scope.step(), &self.v).await?;
        Number::new(scope, v, 1.0, 1.0)
    }
}

/// Scales that differ by rounding of a large factor count as one: what that adds is below a part in a million.
fn same_scale(a: f64, b: f64) -> Result<()> {
    if (a / b - 1.0).abs() < 1e-6 {
        return Ok(());
    }
    Err(Error::Config(format!("scales {a} and {b} do not fit together")))
}
