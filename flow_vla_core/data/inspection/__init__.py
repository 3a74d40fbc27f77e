"""Looks at recorded bags: what is in them, and what is wrong with them."""

from flow_vla_core.data.inspection.bag_report import BagReport, Detail, inspect_bag
from flow_vla_core.data.inspection.findings import Finding, FindingCode, Severity
from flow_vla_core.data.inspection.survey import Survey, inspect_bags

__all__ = ['BagReport', 'Detail', 'Finding', 'FindingCode', 'Severity', 'Survey', 'inspect_bag',
           'inspect_bags']
