//! Asking the processor for memory that will be read soon, so that many reads wait at once instead of one after the other.

use std::ops::Range;

const LINE: usize = 64;

/// Asks for the cache line of an address, whatever is there: nothing is read that the program could see, and it never
/// faults. It changes no result, only the time that a later read takes. Does nothing on processors other than x86-64.
#[inline(always)]
pub fn prefetch_address<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it may be given any address, mapped or not.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache line of `slice[at]`; nothing when `at` lies outside.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], at: usize) {
    if let Some(there) = slice.get(at) {
        prefetch_address(there);
    }
}

/// Asks for the first lines of `bytes[range]`, four at most: what is longer is read in a row, which the processor sees by itself.
#[inline(always)]
pub fn prefetch_range(bytes: &[u8], range: Range<usize>) {
    let last = range.end.saturating_sub(1).min(range.start + 3 * LINE);
    (range.start..last).step_by(LINE).for_each(|at| prefetch(bytes, at));
    prefetch(bytes, last);
}
