"""Sets of good images out of whatever there is, with the reason for every rejection: ``python -m data_tools --help``.

The stages are files of their own and hand each other tables in a work folder (:mod:`data_tools.store` has the schema):
``scan`` (sources, containers, download), ``measuring`` (engine, decode, measure, maps), ``passes``, ``join``,
``decide``, ``report``, ``export``.
"""
