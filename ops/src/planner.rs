//! The planner: every layer on lengths alone, which yields demand and cost.

use std::marker::PhantomData;

use sharelens_protocol::compare::Rounds;
use sharelens_protocol::convert::{self, Interactive};
use sharelens_protocol::correlation::{Plan, SecureRing};
use sharelens_protocol::ring::{Domain, Full, Range, Reduced};
use sharelens_protocol::sign::{self, Comparison, SignOutput};
use sharelens_protocol::{Error, Result, Step, mul, order, shuffle};

use crate::engine::{Engine, Linear, ProductShape};
use crate::opened::{ShuffledKeys, ShuffledPlaces};
use crate::plain::scrambled;

/// [`Engine`] over lengths. What it asks for is what [`crate::Secure`] spends, call by call.
#[derive(Debug)]
pub struct Planner<R> {
    rounds: Rounds,
    plan: Plan,
    ring: PhantomData<R>,
}

/// A vector of which only the length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length<D> {
    n: usize,
    domain: PhantomData<D>,
}

impl<D> Length<D> {
    /// A vector of `n` elements.
    pub const fn new(n: usize) -> Self {
        Self { n, domain: PhantomData }
    }
}

impl<R: SecureRing> Planner<R> {
    /// An empty plan for links that deserve `rounds`.
    pub fn new(rounds: Rounds) -> Self {
        Self { rounds, plan: Plan::default(), ring: PhantomData }
    }

    /// What was asked for.
    pub fn finish(self) -> Plan {
        self.plan
    }

    fn sign(&mut self, at: Step, n: usize, output: SignOutput) {
        self.plan.push(at, sign::Demand { n, output, rounds: self.rounds });
    }
}

/// Checks that a linear map fits its input.
pub(crate) fn check_map(map: &Linear, n: usize) -> Result<()> {
    if !map.conv.is_valid() || map.conv.in_len() != n {
        return Err(Error::Config(format!("a linear map over {} elements is given {n}", map.conv.in_len())));
    }
    Ok(())
}

/// `n` numbers as rows to be shuffled.
pub(crate) fn rows_of(rows: usize, n: usize, range: Range) -> Result<shuffle::Demand> {
    if rows == 0 || n == 0 || !n.is_multiple_of(rows) {
        return Err(Error::Config(format!("{n} numbers are not {rows} rows")));
    }
    Ok(shuffle::Demand { rows, columns: n / rows, range })
}

/// Checks that an operand of `n` numbers has the stated shape.
pub(crate) fn check_operand(at: Step, shape: &ProductShape, n: usize) -> Result<()> {
    if !shape.is_valid() || n != shape.right_len() {
        return Err(Error::Config(format!("{at}: an operand of another shape")));
    }
    Ok(())
}

impl<R: SecureRing> Engine for Planner<R> {
    type V<D: Domain> = Length<D>;
    type Operand = ProductShape;

    fn fork(&mut self) -> Self {
        Self::new(self.rounds)
    }

    fn join(&mut self, fork: Self) {
        self.plan.append(fork.plan);
    }

    fn len<D: Domain>(&self, v: &Length<D>) -> usize {
        v.n
    }

    fn add<D: Domain>(&mut self, a: &Length<D>, _: &Length<D>) -> Length<D> {
        *a
    }

    fn sub<D: Domain>(&mut self, a: &Length<D>, _: &Length<D>) -> Length<D> {
        *a
    }

    fn scale<D: Domain>(&mut self, a: &Length<D>, _: i64) -> Length<D> {
        *a
    }

    fn scale_each<D: Domain>(&mut self, a: &Length<D>, _: &[i64]) -> Length<D> {
        *a
    }

    fn add_public<D: Domain>(&mut self, a: &Length<D>, _: &[i64]) -> Length<D> {
        *a
    }

    fn gather<D: Domain>(&mut self, _: &[&Length<D>], index: &[u32]) -> Length<D> {
        Length::new(index.len())
    }

    fn gather_by<D: Domain>(
        &mut self,
        _: &[&Length<D>],
        len: usize,
        _: impl FnOnce() -> Vec<u32>,
    ) -> Length<D> {
        Length::new(len)
    }

    fn scale_by<D: Domain>(&mut self, a: &Length<D>, _: impl FnOnce() -> Vec<i64>) -> Length<D> {
        *a
    }

    fn reduce(&mut self, x: &Length<Full>) -> Length<Reduced> {
        Length::new(x.n)
    }

    async fn linear(&mut self, at: Step, map: &Linear, x: &Length<Full>) -> Result<Length<Full>> {
        check_map(map, x.n)?;
        self.plan.push(at, *map);
        Ok(Length::new(map.conv.out_len()))
    }

    async fn rescale(&mut self, at: Step, x: &Length<Full>) -> Result<Length<Reduced>> {
        if R::INTERACTIVE == Interactive::Rescale {
            self.plan.push(at, convert::Demand { n: x.n });
        }
        Ok(Length::new(x.n))
    }

    async fn lift(&mut self, at: Step, x: &Length<Reduced>) -> Result<Length<Full>> {
        if R::INTERACTIVE == Interactive::Lift {
            self.plan.push(at, convert::Demand { n: x.n });
        }
        Ok(Length::new(x.n))
    }

    async fn relu(&mut self, at: Step, x: &Length<Reduced>) -> Result<Length<Full>> {
        self.sign(at, x.n, SignOutput::Full);
        Ok(Length::new(x.n))
    }

    async fn relu_reduced(&mut self, at: Step, x: &Length<Reduced>) -> Result<Length<Reduced>> {
        self.sign(at, x.n, SignOutput::Reduced);
        Ok(*x)
    }

    async fn slopes(&mut self, at: Step, x: &Length<Reduced>, _: i64, _: i64) -> Result<Length<Full>> {
        self.sign(at, x.n, SignOutput::Full);
        Ok(Length::new(x.n))
    }

    async fn is_negative(&mut self, at: Step, x: &Length<Reduced>) -> Result<Length<Full>> {
        self.sign(at, x.n, SignOutput::Bit);
        Ok(Length::new(x.n))
    }

    async fn is_outside(&mut self, at: Step, x: &Length<Reduced>, _: i64) -> Result<Length<Full>> {
        self.is_negative(at, x).await
    }

    async fn relu_and_sign(&mut self, at: Step, x: &Length<Reduced>) -> Result<(Length<Full>, Length<Full>)> {
        self.sign(at, x.n, SignOutput::Full);
        Ok((Length::new(x.n), Length::new(x.n)))
    }

    async fn mul(&mut self, at: Step, x: &Length<Full>, _: &Length<Full>) -> Result<Length<Full>> {
        self.plan.push(at, mul::Demand { n: x.n });
        Ok(*x)
    }

    async fn shuffle<D: Domain>(&mut self, at: Step, rows: usize, x: &Length<D>) -> Result<Length<D>> {
        let demand = rows_of(rows, x.n, D::RANGE)?;
        self.plan.push(at, demand);
        Ok(*x)
    }

    async fn open_order(
        &mut self,
        at: Step,
        group: usize,
        keys: &ShuffledKeys<Length<Reduced>>,
    ) -> Result<Vec<u32>> {
        let n = keys.keys().n;
        let pairs = order::count(group, n)?;
        if pairs > 0 {
            self.plan.push(at, Comparison { n: pairs, rounds: self.rounds });
        }
        // As random as what a run will see, so that what follows from it fits together.
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.chunks_mut(group).for_each(|g| g.sort_by_key(|&i| (scrambled(at, i), i)));
        Ok(order)
    }

    async fn open_places(&mut self, at: Step, places: &ShuffledPlaces<Length<Reduced>>) -> Result<Vec<u32>> {
        let n = places.places().n;
        self.plan.push_opening(at, n, Range::Reduced);
        Ok((0..n as u32).collect())
    }

    fn operand(&mut self, at: Step, shape: ProductShape, y: Length<Full>) -> Result<ProductShape> {
        check_operand(at, &shape, y.n)?;
        self.plan.push(at, shape);
        Ok(shape)
    }

    async fn product(
        &mut self,
        at: Step,
        operand: &mut ProductShape,
        x: &Length<Full>,
    ) -> Result<Length<Full>> {
        if x.n != operand.left_len() {
            return Err(Error::Config(format!("{at}: a factor of another shape")));
        }
        let left = operand.uses.checked_sub(1);
        operand.uses = left.ok_or_else(|| Error::Config(format!("{at}: an operand used too often")))?;
        Ok(Length::new(operand.out_len()))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use sharelens_protocol::ring::Rns;

    use super::*;
    use crate::detect::{Extent, Suppress};
    use crate::layers::{Axis, MaxPool, WeightedSum, Window};
    use crate::number::Scope;
    use crate::plain::Bounds;

    /// An engine over lengths that refuses to look at places one by one where a tensor is large.
    #[test]
    fn places_are_not_listed() {
        let mut e = Planner::<Rns>::new(Rounds::Balanced);
        let unread = || -> Vec<u32> { unreachable!("a plan needs no places") };
        assert_eq!(e.gather_by(&[&Length::<Full>::new(3)], 1 << 40, unread).n, 1 << 40);
        // Numbers of elements that no machine could list.
        let n = 1usize << 40;
        let pool = Window { input: 2, kernel: 2, stride: 2, dilation: 1, before: 0, output: 1 };
        let pool = MaxPool { n, c: 1, rows: pool, columns: pool };
        let out = block_on(pool.run(&mut e, Step::layer(0), &Length::new(4 * n))).expect("planned");
        assert_eq!(out.n, n);
        let axis = Axis { input: 2, entries: vec![vec![(0, 1), (1, 1)]] };
        let sum = WeightedSum { n: 1, c: 1 << 16, rows: axis.clone(), columns: axis };
        assert_eq!(sum.run(&mut e, &Length::new(4 << 16)).n, 1 << 16);
    }

    #[test]
    fn suppression_is_planned_by_its_size() {
        let bounds = Bounds::rns(&[255, 253, 251, 247], &[241, 239, 233]).expect("fits 64 bits");
        let rows = 4096;
        let stage = Suppress {
            rows,
            width: 4,
            extent: Extent { width: 8.0, height: 8.0, scale: 1024.0 },
            least_side: 1,
            least: vec![],
            class: None,
            classes: 0,
            threshold: 0.5,
            steps: 3,
        };
        let mut e = Planner::<Rns>::new(Rounds::Balanced);
        let mut scope = Scope::new(Step::layer(0), bounds);
        let bits = block_on(stage.run(&mut e, &mut scope, &Length::new(4 * rows))).expect("in range");
        assert_eq!(bits.len(&e), 2 * rows);
        let compared =
            e.finish().demands().values().map(|d| format!("{d:?}")).filter(|d| d.contains("Sign")).count();
        assert_eq!(compared, 3 + stage.steps, "two bends, the overlaps, and a sign for each step");
    }
}
