"""The public dev-sec baselines as a black-box check of a host.

The facts (a control's id and title, what it looks at, what it wants) are those of dev-sec linux-baseline 2.10 and
ssh-baseline 2.8.1 (Apache-2.0); the code is our own, and nothing has to be installed on the host. From a test::

    from tests.baseline import report

    before, after = report.run(guest("fresh")), report.run(guest("debian13"))
    print(report.side_by_side({"fresh": before, "debian13": after}))
    assert report.rate(after) >= 0.95
    assert not report.unexplained(after)

By hand, from the top folder: ``python -m tests.baseline.report "ssh://HOST?sudo=true"``.
"""
