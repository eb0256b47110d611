//! Gossip of ads: topics and scoring.
//!
//! There are [`BUCKETS`] topics per network; an ad goes to the bucket of each model that it offers. A
//! peer subscribes to the buckets of the models it uses, so that it hears a sixteenth of a large network
//! or less; servers may hear everything.
//!
//! Messages are signed by their author (strict mode), and nothing is forwarded before the ad in it was
//! verified: accepted ads are forwarded, late or repeated ones dropped silently, faulty ones rejected,
//! which costs whoever forwarded them.

use std::{collections::HashSet, net::Ipv4Addr, time::Duration};

use libp2p::{
    gossipsub::{
        Behaviour, Config, ConfigBuilder, IdentTopic, IdentityTransform, MessageAuthenticity,
        PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode,
        WhitelistSubscriptionFilter,
    },
    identity::Keypair,
};

use super::Names;
use crate::core::{MAX_AD_BYTES, MAX_AD_LIFETIME_S, MAX_CLOCK_SKEW_S};

/// Topics per network.
pub(crate) const BUCKETS: u8 = 16;

/// Gossip with a fixed set of topics: strangers cannot make this peer remember others.
pub(crate) type Gossip = Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// The bucket of a model.
pub(crate) fn bucket(model: &[u8; 32]) -> u8 {
    model[0] % BUCKETS
}

/// The topic of a bucket.
pub(crate) fn topic(names: &Names, bucket: u8) -> IdentTopic {
    IdentTopic::new(format!("{}/ads/{bucket}", names.root))
}

/// The bucket of a topic of this network.
pub(crate) fn bucket_of(names: &Names, topic: &TopicHash) -> Option<u8> {
    let bucket: u8 = topic.as_str().strip_prefix(&format!("{}/ads/", names.root))?.parse().ok()?;
    (bucket < BUCKETS).then_some(bucket)
}

pub(crate) fn behaviour(names: &Names, keypair: &Keypair) -> Result<Gossip, String> {
    let topics: HashSet<TopicHash> = (0..BUCKETS).map(|b| topic(names, b).hash()).collect();
    let config = config().map_err(|error| error.to_string())?;
    let mut gossip = Gossip::new_with_subscription_filter(
        MessageAuthenticity::Signed(keypair.clone()),
        config,
        WhitelistSubscriptionFilter(topics),
    )
    .map_err(str::to_owned)?;
    gossip.with_peer_score(score_params(names), thresholds())?;
    Ok(gossip)
}

fn config() -> Result<Config, libp2p::gossipsub::ConfigBuilderError> {
    ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(2 * MAX_AD_BYTES)
        .heartbeat_initial_delay(Duration::from_millis(200))
        .heartbeat_interval(Duration::from_secs(1))
        .mesh_n_low(4)
        .mesh_n(6)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .gossip_lazy(3)
        .history_length(12)
        .history_gossip(3)
        // Own ads go to every subscriber at once: two or three peers need no mesh to hear each other, and
        // in a large network the first hop cannot be eclipsed by a bad mesh.
        .flood_publish(true)
        // A message is forgotten only when the ad in it has expired everywhere.
        .duplicate_cache_time(Duration::from_secs(MAX_AD_LIFETIME_S + 2 * MAX_CLOCK_SKEW_S))
        .connection_handler_queue_len(1_024)
        .build()
}

/// What the score thresholds mean in offences: one rejected ad costs 10 and is forgiven within minutes,
/// two cost 40, three cost 90 (the penalty is the square of the count).
fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        // Two rejected ads: no gossip to or from the peer.
        gossip_threshold: -20.0,
        publish_threshold: -50.0,
        // Three: everything it sends is ignored.
        graylist_threshold: -80.0,
        accept_px_threshold: 10.0,
        opportunistic_graft_threshold: 2.0,
    }
}

fn score_params(names: &Names) -> PeerScoreParams {
    let per_topic = TopicScoreParams {
        topic_weight: 0.5,
        // Up to 1 point for 50 minutes in the mesh: a tie-break for stable peers.
        time_in_mesh_weight: 0.02,
        time_in_mesh_quantum: Duration::from_secs(30),
        time_in_mesh_cap: 100.0,
        // Up to 5 points for being first with ads.
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.99,
        first_message_deliveries_cap: 20.0,
        // Off: ads are rare, so that a silent peer is usually an honest one.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // 0.5 · −20 · count², halving about once a minute.
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: (0..BUCKETS).map(|b| (topic(names, b).hash(), per_topic.clone())).collect(),
        topic_score_cap: 20.0,
        // The application score is minus a quarter of the points of `core::Standing`.
        app_specific_weight: 1.0,
        // More than ten peers behind one address look like Sybils, except on this very machine.
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_threshold: 10.0,
        ip_colocation_factor_whitelist: HashSet::from([
            Ipv4Addr::LOCALHOST.into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
        ]),
        // Restarting peers graft early and forget promises a few times; a habit of it costs.
        behaviour_penalty_weight: -10.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: 0.9,
        retain_score: Duration::from_secs(600),
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_are_valid_and_topics_round_trip() {
        let names = Names::new(&[7; 32]);
        assert!(behaviour(&names, &Keypair::generate_ed25519()).is_ok());
        for b in 0..BUCKETS {
            assert_eq!(bucket_of(&names, &topic(&names, b).hash()), Some(b));
        }
        assert_eq!(bucket_of(&Names::new(&[8; 32]), &topic(&names, 3).hash()), None);
    }
}
