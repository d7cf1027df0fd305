"""The suites of an audit: one registry of detectors and mitigations (020), the steps and costs that follow from it, and its sections.

`registry` names every detector, `detector` says what an entry is, `planning` makes the steps of an audit of it, `reporting` its sections;
`landscape` holds the rest of the survey's terms. One file a detector: to add one is that file and an entry.
"""
