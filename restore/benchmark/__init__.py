"""The benchmark: suites, protocols and published numbers as data, and the runner that produces comparable numbers.

``restore bench SUITE`` is the command; reading order: ``catalog`` (what there is to measure), ``locate`` (where it lies),
``inputs`` (what the networks see), ``competitors``, ``protocol`` (how a score is taken), ``run``, ``report``.
"""
