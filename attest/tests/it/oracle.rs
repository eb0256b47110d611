//! A second, independent parser of quotes (the tdx-quote crate) must see what we see.
//!
//! It is an oracle for parsing only: it is lax about trust, and panics on some short inputs.

use cocoon_attest::{Measurement, Quoter, TrustRoot, canonical_collateral, quoted_measurement, verify_quote};
use proptest::prelude::*;

use crate::testkit::{NOW, dcap_qvl, platform, policy};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn both_read_the_same_out_of_a_software_quote(
        image in prop::collection::vec(any::<u8>(), 48),
        report_data in prop::collection::vec(any::<u8>(), 64),
    ) {
        let image = Measurement(image.try_into().unwrap());
        let report_data: [u8; 64] = report_data.try_into().unwrap();
        let tee = platform().quoter(image);
        let quote = tee.quote(&report_data).unwrap();
        let ours =
            verify_quote(&quote, &tee.collateral().unwrap(), &policy(platform().trust_root()), NOW).unwrap();
        prop_assert_eq!(ours.measurement, image);
        prop_assert_eq!(ours.report_data, report_data);

        let theirs = tdx_quote::Quote::from_bytes(&quote).unwrap();
        prop_assert_eq!(theirs.header.version, 4);
        prop_assert_eq!(theirs.mrtd(), image.0);
        prop_assert_eq!(theirs.report_input_data(), report_data);
        prop_assert!(theirs.verify().is_err(), "its only root is Intel's");
    }

    /// Where the other parser sees a broken quote signature, so do we.
    #[test]
    fn both_refuse_a_change_of_what_is_signed(at in 0usize..632, flip in 1u8..) {
        let tee = platform().quoter(Measurement([1; 48]));
        let mut quote = tee.quote(&[2; 64]).unwrap();
        quote[at] ^= flip;
        let policy = policy(platform().trust_root());
        prop_assert!(verify_quote(&quote, &tee.collateral().unwrap(), &policy, NOW).is_err());
        prop_assert!(tdx_quote::Quote::from_bytes(&quote).is_err());
    }
}

#[test]
fn both_read_the_same_out_of_a_genuine_quote() {
    let sample = dcap_qvl().join("sample");
    let quote = std::fs::read(sample.join("tdx_quote")).unwrap();
    let collateral =
        canonical_collateral(&std::fs::read(sample.join("tdx_quote_collateral.json")).unwrap()).unwrap();
    let ours = verify_quote(&quote, &collateral, &policy(TrustRoot::intel()), 1_750_586_400).unwrap();
    let theirs = tdx_quote::Quote::from_bytes(&quote).unwrap();
    theirs.verify().unwrap();
    // This machine extended its registers, so that they are all part of its identity.
    let mut all = b"cocoon/measurement/v1".to_vec();
    // MRCONFIGID, which the oracle does not show, is zero here.
    let registers = [theirs.mrtd(), [0; 48], theirs.rtmr0(), theirs.rtmr1(), theirs.rtmr2(), theirs.rtmr3()];
    registers.iter().for_each(|register| all.extend_from_slice(register));
    assert_ne!(theirs.rtmr0(), [0; 48]);
    assert_eq!(ours.measurement.0.as_slice(), ring::digest::digest(&ring::digest::SHA384, &all).as_ref());
    assert_eq!(quoted_measurement(&quote).unwrap(), ours.measurement);
    assert_eq!(ours.report_data, theirs.report_input_data());
}
