//! How user space is allowed to see the shared types as bytes.

/// Declares that a shared type may be handed to aya. It demands `bytemuck::Pod`, whose derive refuses hidden padding and
/// invalid bit patterns, so aya's blanket promise is one that the compiler has checked.
#[cfg(feature = "user")]
#[macro_export]
macro_rules! user_pod {
    ($($t:ty),* $(,)?) => { $(
        const _: () = { const fn plain<T: ::bytemuck::Pod>() {} plain::<$t>() };
        // SAFETY: `bytemuck::Pod`, demanded in the line above, promises the same: any bytes are valid, none is padding.
        #[expect(unsafe_code, reason = "the one place of the field guide's rule 11 for aya::Pod")]
        unsafe impl ::aya::Pod for $t {}
    )* };
}

#[cfg(feature = "user")]
mod impls {
    use crate::{drop::Count, event::*, maps::*, net::*};
    user_pod!(Be16, Be32, Ip4, Ip6, Mac, Config, Endpoint, Local, Remote, Cidr, Tunnel, Count, DropEvent, EventBudget);
}
