//! The search for `rdtsc` and `rdtscp` in a kernel's code.

use vmm::loader::tsc;

pub(crate) fn run(data: &[u8]) {
    let Some(sites) = tsc::find(data) else { return };
    let mut code = data.to_vec();
    let mut end = 0;
    for site in &sites {
        assert!((2..=15).contains(&site.length), "{site:?}");
        assert!(site.offset >= end, "{site:?} overlaps the site before it");
        end = site.offset + site.length;
        let replacement = site.replacement();
        assert_eq!(replacement.len(), site.length);
        code.get_mut(site.offset..end)
            .expect("a site lies in the code")
            .copy_from_slice(&replacement);
    }
}
