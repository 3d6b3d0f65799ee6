"""Tells twistd of ctd: ``twistd ctd``."""

from twisted.application.service import ServiceMaker

ctd = ServiceMaker("ctd", "ctd.app", "A container daemon.", "ctd")
