//! What the world may tell a device: packets, finished requests, console and random bytes.
//!
//! Every function here changes guest memory and the device at the moment it is called and at no
//! other. An input that the device has no use for (the wrong kind of device, no driver, an unknown
//! token) changes nothing.

use super::VirtioPci;
use crate::GuestMemory;
use crate::effect::{BlockKind, BlockRequest, BlockStatus, Effect};
use crate::model::DeviceModel;
use crate::model::net::NetState;

impl VirtioPci {
    /// Whether a received packet could be taken at all: there is a buffer, or nobody who listens
    /// (then the packet is lost, as on a card whose driver is not loaded).
    pub fn can_receive(&self, memory: &GuestMemory) -> bool {
        self.listening_net().is_none_or(|net| net.can_receive(memory, &self.state.queues))
    }

    /// Whether [`receive`](Self::receive) would take a packet of `length` bytes, header included.
    /// Looks at every buffer the packet would need.
    pub fn can_receive_packet(&self, memory: &GuestMemory, length: usize) -> bool {
        let features = self.state.common.driver_features;
        self.listening_net()
            .is_none_or(|net| net.can_receive_packet(memory, &self.state.queues, features, length))
    }

    fn listening_net(&self) -> Option<&NetState> {
        match &self.state.model {
            DeviceModel::Net(net) => self.state.common.is_live().then_some(net),
            DeviceModel::Block(_) | DeviceModel::Console(_) | DeviceModel::Rng(_) => None,
        }
    }

    /// Gives the guest a packet, which starts with the 12-byte virtio-net header.
    ///
    /// Returns false, having changed nothing, if the guest has not enough buffers now: the caller
    /// keeps the packet. A packet that no buffer can ever hold, or that nobody listens for, is
    /// dropped and counts as taken.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        packet: &[u8],
        effects: &mut Vec<Effect>,
    ) -> bool {
        if !self.state.common.is_live() {
            return true;
        }
        let mut taken = true;
        self.with_model(memory, effects, |model, context| {
            if let DeviceModel::Net(net) = model {
                taken = net.receive(context, packet)?;
            }
            Ok(())
        });
        taken
    }

    /// Ends the disk request `token`. `data` is what a read has read, and empty otherwise.
    ///
    /// A token that is not open is ignored; a read that brings another length than it was asked
    /// for is an I/O error.
    pub fn complete(
        &mut self,
        memory: &GuestMemory,
        token: u64,
        status: BlockStatus,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let live = self.state.common.is_live();
        self.with_model(memory, effects, |model, context| match model {
            DeviceModel::Block(block) => block.complete(context, live, token, status, data),
            DeviceModel::Net(_) | DeviceModel::Console(_) | DeviceModel::Rng(_) => Ok(()),
        });
    }

    /// Gives the guest console input. Returns how many bytes it had room for; the caller keeps the
    /// rest.
    pub fn console_input(
        &mut self,
        memory: &GuestMemory,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> usize {
        if !self.state.common.is_live() {
            return 0;
        }
        let mut taken = 0;
        self.with_model(memory, effects, |model, context| {
            if let DeviceModel::Console(console) = model {
                taken = console.input(context, bytes)?;
            }
            Ok(())
        });
        taken
    }

    /// Whether [`console_input`](Self::console_input) would take at least one byte.
    pub fn can_take_console_input(&self, memory: &GuestMemory) -> bool {
        let state = &self.state;
        match &state.model {
            DeviceModel::Console(console) if state.common.is_live() => {
                console.can_take_input(memory, &state.queues)
            }
            DeviceModel::Console(_)
            | DeviceModel::Block(_)
            | DeviceModel::Net(_)
            | DeviceModel::Rng(_) => false,
        }
    }

    /// Answers the oldest open [`Effect::Entropy`]. Bytes beyond what it asked for are dropped.
    pub fn entropy(&mut self, memory: &GuestMemory, bytes: &[u8], effects: &mut Vec<Effect>) {
        if !self.state.common.is_live() {
            return;
        }
        self.with_model(memory, effects, |model, context| match model {
            DeviceModel::Rng(rng) => rng.entropy(context, bytes),
            DeviceModel::Net(_) | DeviceModel::Console(_) | DeviceModel::Block(_) => Ok(()),
        });
    }

    /// Asks the guest to announce its addresses to the network (virtio 1.2, section 5.1.6.5.4),
    /// if its driver can.
    pub fn announce(&mut self, effects: &mut Vec<Effect>) {
        let state = &mut self.state;
        if !state.common.is_live() {
            return;
        }
        if let DeviceModel::Net(net) = &mut state.model
            && net.announce(state.common.driver_features)
        {
            state.common.notify_config_change(&mut state.msix, effects);
        }
    }

    /// Tokens of the disk requests that were handed out and not completed, in order.
    pub fn open_requests(&self) -> Vec<u64> {
        match &self.state.model {
            DeviceModel::Block(block) => block.open.keys().copied().collect(),
            DeviceModel::Net(_) | DeviceModel::Console(_) | DeviceModel::Rng(_) => Vec::new(),
        }
    }

    /// The open disk requests again, in order and byte for byte as they were handed out.
    pub fn reissue(&self) -> Vec<BlockRequest> {
        match &self.state.model {
            DeviceModel::Block(block) => block
                .open
                .iter()
                .map(|(token, open)| BlockRequest { token: *token, kind: open.kind.clone() })
                .collect(),
            DeviceModel::Net(_) | DeviceModel::Console(_) | DeviceModel::Rng(_) => Vec::new(),
        }
    }

    /// Everything a new shell must do to take the place of one that is gone: open disk requests,
    /// open requests for random bytes, offloads of the tap.
    pub fn standing_effects(&self) -> Vec<Effect> {
        let device = self.state.device;
        match &self.state.model {
            DeviceModel::Block(_) => self
                .reissue()
                .into_iter()
                .map(|request| Effect::Block { device, request })
                .collect(),
            DeviceModel::Net(net) => {
                vec![Effect::NetOffloads { device, offloads: net.offloads }]
            }
            DeviceModel::Rng(rng) => rng
                .pending
                .iter()
                .map(|pending| Effect::Entropy { device, length: pending.length })
                .collect(),
            DeviceModel::Console(_) => Vec::new(),
        }
    }

    /// The kind of an open disk request.
    pub fn open_request(&self, token: u64) -> Option<&BlockKind> {
        match &self.state.model {
            DeviceModel::Block(block) => block.open.get(&token).map(|open| &open.kind),
            DeviceModel::Net(_) | DeviceModel::Console(_) | DeviceModel::Rng(_) => None,
        }
    }
}
