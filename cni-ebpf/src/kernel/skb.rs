//! A frame at tc: direct access to its linear part.
use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_tunnel_key,
    },
    helpers::{
        bpf_csum_diff, bpf_csum_level, bpf_get_prandom_u32, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_pull_data, bpf_skb_set_tunnel_key,
    },
};
use bytemuck::{Pod, Zeroable};
use cni_common::{
    net::Ip4,
    wire::{ETH_LEN, OVERHEAD4, OVERHEAD6},
};
use cni_ebpf::{DropReason as D, Packet, Res, Room, encap::OUTER_TTL, packet::TunnelEnd};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV4`, Linux 6.3; not in the bindings.
const DECAP_L3_IPV4: u64 = 1 << 7;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6`, Linux 6.3; not in the bindings.
const DECAP_L3_IPV6: u64 = 1 << 8;
/// The inner Ethernet header's length, where the flags of `bpf_skb_adjust_room` want it.
const INNER_L2: u64 = (ETH_LEN as u64) << 56;
/// The part of `struct bpf_tunnel_key` that every kernel knows: it grew by the local address at its end, and 5.10 refuses the
/// larger size at run time.
const TUNNEL_KEY: u32 = offset_of!(bpf_tunnel_key, __bindgen_anon_3) as u32;

const _: () = assert!(offset_of!(__sk_buff, data) == 76 && offset_of!(__sk_buff, data_end) == 80);
const _: () = assert!(
    TUNNEL_KEY == 28
        && offset_of!(bpf_tunnel_key, __bindgen_anon_1) == 4
        && offset_of!(bpf_tunnel_key, tunnel_tos) == 20
        && offset_of!(bpf_tunnel_key, tunnel_ttl) == 21
        && offset_of!(bpf_tunnel_key, tunnel_label) == 24
);

/// The context of a tc program.
pub struct Skb {
    ctx: *mut __sk_buff,
}

impl Skb {
    /// From the context that the kernel handed to the program.
    #[inline(always)]
    pub fn new(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }

    /// The context.
    #[inline(always)]
    pub fn context(&self) -> *mut __sk_buff {
        self.ctx
    }

    /// `data` and `data_end` are 32-bit fields of the context that the verifier turns into 64-bit pointers. LLVM must not learn
    /// their declared type: it would copy them by 32-bit moves, and the verifier would take them for numbers.
    #[inline(always)]
    fn bounds(&self) -> (*mut u8, *mut u8) {
        let (data, end): (*mut u8, *mut u8);
        // SAFETY: `ctx` is the program's context, and 76 is the offset of `data` in it, asserted above.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 76)", out(reg) data, in(reg) self.ctx, options(pure, readonly, nostack, preserves_flags));
        }
        // SAFETY: as above; 80 is the offset of `data_end`.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 80)", out(reg) end, in(reg) self.ctx, options(pure, readonly, nostack, preserves_flags));
        }
        (data, end)
    }

    /// The pointer that is compared is the pointer that is used: so the verifier learns its range.
    #[inline(always)]
    fn at<T>(&self, off: usize) -> Res<*mut T> {
        let (data, end) = self.bounds();
        let p = data.wrapping_add(off);
        if p.wrapping_add(size_of::<T>()) > end {
            return Err(D::Short);
        }
        Ok(p.cast())
    }

    #[inline(always)]
    fn adjust_room(&mut self, by: i32, flags: u64) -> Res<()> {
        // SAFETY: `ctx` is the program's context; pointers into the packet are made anew at every access.
        match unsafe { bpf_skb_adjust_room(self.ctx, by, BPF_ADJ_ROOM_MAC, flags) } {
            0 => Ok(()),
            _ => Err(D::AdjustRoom),
        }
    }

    /// The tunnel key that the VXLAN device recorded, if it is of the family that `flags` name.
    #[inline(always)]
    fn tunnel_key(&self, flags: u64) -> Option<MaybeUninit<bpf_tunnel_key>> {
        // Not zeroed: that would be a call of memset.
        let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
        // SAFETY: `key` has at least TUNNEL_KEY bytes, and `ctx` is the program's context.
        let rc = unsafe { bpf_skb_get_tunnel_key(self.ctx, key.as_mut_ptr(), TUNNEL_KEY, flags) };
        if rc == 0 { Some(key) } else { None }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a field of the program's context.
        unsafe { (*self.ctx).len }
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a field of the program's context.
        unsafe { (*self.ctx).ifindex }
    }
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: a field of the program's context.
        unsafe { (*self.ctx).gso_size }
    }
    #[inline(always)]
    fn identification(&self) -> u16 {
        // SAFETY: takes nothing and reads nothing of ours.
        (unsafe { bpf_get_prandom_u32() }) as u16
    }
    #[inline(always)]
    fn has_vlan(&self) -> bool {
        // SAFETY: a field of the program's context.
        unsafe { (*self.ctx).vlan_present != 0 }
    }
    #[inline(always)]
    fn blur(&self, n: u64) -> u64 {
        let mut n = n;
        // SAFETY: two instructions on registers; any number that the verifier does not know will do.
        unsafe {
            asm!("{0} += {1}", "{0} -= {1}", "goto +0", inout(reg) n, in(reg) u64::from(self.len()), options(nomem, nostack));
        }
        n
    }
    /// Only what is neither long enough nor whole is pulled: a locally sent TCP segment keeps its payload in pages, and
    /// pulling "a few bytes more, to be safe" costs a microsecond a packet.
    #[inline(always)]
    fn linear(&mut self, want: u32) {
        let ((data, end), len) = (self.bounds(), self.len());
        if data.wrapping_add(want as usize) > end && data.wrapping_add(len as usize) > end {
            // SAFETY: `ctx` is the program's context; a failure shows at the next access, as Short.
            unsafe { bpf_skb_pull_data(self.ctx, if len < want { len } else { want }) };
        }
    }
    #[inline(always)]
    fn read<T: Pod>(&self, off: usize) -> Res<T> {
        let p = self.at::<T>(off)?;
        // SAFETY: `at` compared the whole of T with data_end. The machine bears misalignment, and `read_unaligned` would load
        // byte by byte.
        Ok(unsafe { p.read() })
    }
    #[inline(always)]
    fn write<T: Pod>(&mut self, off: usize, v: T) -> Res<()> {
        let p = self.at::<T>(off)?;
        // SAFETY: as in `read`.
        unsafe { p.write(v) };
        Ok(())
    }
    #[inline(always)]
    fn sum<const N: usize>(&self, off: usize) -> Res<u64> {
        let p = self.at::<[u8; N]>(off)?;
        // SAFETY: `at` compared all N bytes with data_end.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, p.cast(), N as u32, 0) };
        if sum < 0 { Err(D::Short) } else { Ok(sum as u64) }
    }
    #[inline(always)]
    fn grow(&mut self, room: Room, l2: bool) -> Res<()> {
        let (bytes, l3) = match room {
            Room::Vxlan4 => (OVERHEAD4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4),
            Room::Vxlan6 => (OVERHEAD6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6),
        };
        let flags = u64::from(l3 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_FIXED_GSO) | INNER_L2;
        let eth = if l2 { u64::from(BPF_F_ADJ_ROOM_ENCAP_L2_ETH) } else { 0 };
        self.adjust_room(bytes as i32, flags | eth)
    }
    #[inline(always)]
    fn shrink(&mut self, bytes: u32, inner: Option<u8>) -> Res<()> {
        let family = match inner {
            None => 0,
            Some(4) => DECAP_L3_IPV4,
            Some(_) => DECAP_L3_IPV6,
        };
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
        self.adjust_room(-(bytes as i32), flags | family)?;
        // The outer checksum was one level of those that the device has checked.
        // SAFETY: `ctx` is the program's context; without a checked level the helper does nothing.
        unsafe { bpf_csum_level(self.ctx, u64::from(BPF_CSUM_LEVEL_DEC)) };
        Ok(())
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> Res<()> {
        // SAFETY: `ctx` is the program's context; pointers into the packet are made anew at every access.
        match unsafe { bpf_skb_change_tail(self.ctx, len, 0) } {
            0 => Ok(()),
            _ => Err(D::Short),
        }
    }
    #[inline(always)]
    fn push(&mut self, bytes: u32) -> Res<()> {
        self.adjust_room(bytes as i32, 0)
    }
    #[inline(always)]
    fn set_tunnel(&mut self, to: TunnelEnd, vni: u32, tos: u32) -> Res<()> {
        let (address, flags) = match to {
            TunnelEnd::V4(a) => ([u32::from_be_bytes(a.bytes), 0, 0, 0], 0),
            TunnelEnd::V6(a) => (bytemuck::must_cast::<_, Words>(a).words, BPF_F_TUNINFO_IPV6),
        };
        let [a, b, c, d] = address;
        // Number and remote address; DSCP, TTL and two bytes that are zero; flow label.
        let key: [u32; TUNNEL_KEY as usize / 4] =
            [vni, a, b, c, d, u32::from_ne_bytes([tos as u8, OUTER_TTL, 0, 0]), 0];
        // The outer checksum is 0 as in what we encapsulate ourselves.
        let flags = u64::from(flags | BPF_F_ZERO_CSUM_TX);
        // SAFETY: `key` has TUNNEL_KEY bytes, laid out as `struct bpf_tunnel_key` (asserted above), and `ctx` is the program's context.
        match unsafe { bpf_skb_set_tunnel_key(self.ctx, key.as_ptr().cast_mut().cast(), TUNNEL_KEY, flags) } {
            0 => Ok(()),
            _ => Err(D::AdjustRoom),
        }
    }
    #[inline(always)]
    fn for_this_host(&mut self) {
        // SAFETY: a field of the program's context.
        if unsafe { (*self.ctx).pkt_type } != PACKET_HOST {
            // SAFETY: `ctx` is the program's context.
            unsafe { bpf_skb_change_type(self.ctx, PACKET_HOST) };
        }
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: a field of the program's context.
        unsafe { (*self.ctx).mark }
    }
    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: a field of the program's context, which programs of tc may write.
        unsafe { (*self.ctx).mark = mark };
    }
    #[inline(always)]
    fn tunnel_source(&self) -> Option<TunnelEnd> {
        if let Some(key) = self.tunnel_key(0) {
            // SAFETY: the helper wrote the first TUNNEL_KEY bytes, which hold the address; any bytes are a valid one.
            let host_order: u32 = unsafe { remote_address(&key).cast::<u32>().read() };
            return Some(TunnelEnd::V4(Ip4::new(host_order.to_be_bytes())));
        }
        let key = self.tunnel_key(u64::from(BPF_F_TUNINFO_IPV6))?;
        // SAFETY: as above.
        let words: [u32; 4] = unsafe { remote_address(&key).cast::<[u32; 4]>().read() };
        Some(TunnelEnd::V6(bytemuck::must_cast(Words { words })))
    }
    #[inline(always)]
    fn tunnel_class(&self) -> u32 {
        let key = match self.tunnel_key(0) {
            Some(key) => Some(key),
            None => self.tunnel_key(u64::from(BPF_F_TUNINFO_IPV6)),
        };
        // SAFETY: the helper wrote the first TUNNEL_KEY bytes, of which the number is the first.
        key.map_or(0, |key| unsafe { key.as_ptr().cast::<u32>().read() } & 0xff_ffff)
    }
}

/// The union of remote addresses.
#[inline(always)]
fn remote_address(key: &MaybeUninit<bpf_tunnel_key>) -> *const u8 {
    key.as_ptr().cast::<u8>().wrapping_add(offset_of!(bpf_tunnel_key, __bindgen_anon_1))
}

/// Sixteen bytes under the alignment of an [`Ip6`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Words {
    words: [u32; 4],
}
