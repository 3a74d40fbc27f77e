"""Cuts recorded bags and deals them out; what is kept stays as it was recorded."""

from flow_vla_core.data.editing.deal import deal_out
from flow_vla_core.data.editing.pieces import Piece, Written
from flow_vla_core.data.editing.split import split_bag
from flow_vla_core.data.editing.trim import trim_bag

__all__ = ['Piece', 'Written', 'deal_out', 'split_bag', 'trim_bag']
