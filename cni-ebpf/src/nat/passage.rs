//! The way of a packet through the steps.
use core::marker::PhantomData;

use super::{
    port::{Attempts, Try, Wanted, choose},
    table::{Masquerade, Step},
};
use crate::{DropReason as D, Res, ct::Ask, family::Family};

/// Lets a pod's packet, which was tracked, leave for the world: the device, or 0 if that is the stack's business.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn leave<F: Family, P, S: Masquerade<P, F>>(p: &mut P, s: &S, ask: Ask) -> Res<u32> {
    let by = s.way(p, ask);
    if by == 0 {
        return Ok(0);
    }
    let mut step = s.translate(p, ask, by)?;
    if step == Step::Choose {
        let wanted = s.wanted(p, ask)?;
        choose(&mut Here { p, s, ask, by, family: PhantomData::<F> }, wanted)?;
        step = s.translate(p, ask, by)?;
    }
    if step == Step::Error {
        step = s.translate_error(p, ask)?;
    }
    match step {
        Step::Itself => Ok(0),
        Step::Done => Ok(by),
        // Another CPU was at it.
        Step::Choose | Step::Error => Err(D::NatOrphan),
    }
}

/// Whether what a device of the node has received was for a pod, and is now.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn arrive<F: Family, P, S: Masquerade<P, F>>(p: &mut P, s: &S) -> Res<bool> {
    let mut step = s.arrive(p)?;
    if step == Step::Error {
        step = s.arrive_error(p)?;
    }
    Ok(step == Step::Done)
}

/// A pod's packet at the device by which it leaves.
struct Here<'a, F, P, S> {
    p: &'a mut P,
    s: &'a S,
    ask: Ask,
    by: u32,
    family: PhantomData<F>,
}
impl<F: Family, P, S: Masquerade<P, F>> Attempts for Here<'_, F, P, S> {
    #[inline(always)]
    fn attempt(&mut self, w: Wanted) -> Res<Try> {
        self.s.attempt(self.p, self.ask, self.by, w)
    }
    #[inline(always)]
    fn take_over(&mut self, w: Wanted) -> Res<Try> {
        self.s.take_over(self.p, self.ask, self.by, w)
    }
    #[inline(always)]
    fn settle(&mut self, w: Wanted) -> Res<Try> {
        self.s.settle(self.p, self.ask, self.by, w)
    }
}
