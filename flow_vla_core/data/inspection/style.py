"""The looks of the page, and the few lines that open a bag and search among them."""

from __future__ import annotations

__all__ = ['CSS', 'SCRIPT']

CSS = """
:root{--ink:#1c2330;--quiet:#69748a;--line:#dfe4ec;--page:#f6f7f9;--card:#fff;--error:#c4314b;--warning:#b4690e;
--info:#4a6fa5;--good:#2b8a57;--c0:#3b6fd4;--c1:#d9822b;--c2:#2b9a6b;--c3:#c4314b;--c4:#7d5bbf;--c5:#1c9aa8;--c6:#a0762c;
--c7:#8a94a6}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8f0;--quiet:#97a1b5;--line:#333b49;--page:#14181f;--card:#1c222c;
--error:#f0758a;--warning:#e6a54c;--info:#86aee6;--good:#62c492;--c0:#6f9cf0;--c1:#eda45c;--c2:#5cc498;--c3:#f0758a;
--c4:#a98be6;--c5:#56c4d0;--c6:#cfa75c;--c7:#7d889c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:28px 24px 80px;background:var(--page);color:var(--ink);
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:24px;margin:0}h2{font-size:16px;margin:34px 0 10px}h3{font-size:13px;margin:16px 0 6px}
p,.quiet{color:var(--quiet)}p{margin:2px 0 0}
.card,details.bag{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:18px}
.tile span.error{color:var(--error)}.tile span.warning{color:var(--warning)}.tile span.info{color:var(--info)}
.tile b{display:block;font-size:22px;line-height:1.25}.tile span{color:var(--quiet)}
.error{color:var(--error)}.warning{color:var(--warning)}.info{color:var(--info)}.good{color:var(--good)}
.badge{display:inline-block;min-width:20px;padding:0 7px;border-radius:9px;font-size:12px;text-align:center;
color:var(--card);background:var(--quiet)}
.badge.error{background:var(--error)}.badge.warning{background:var(--warning)}.badge.info{background:var(--info)}
.badge.good{background:var(--good)}
table{border-collapse:collapse;width:100%}th{font-weight:500;color:var(--quiet);text-align:left}
th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:12.5px ui-monospace,"DejaVu Sans Mono",monospace}
.two{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:12px}
@media(max-width:800px){.two{grid-template-columns:1fr}}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:14px 20px}
.grid figure{margin:0}figcaption{font-size:12px;color:var(--quiet);display:flex;justify-content:space-between}
figcaption b{color:var(--ink);font-weight:500}
svg{display:block;width:100%;height:auto;font-size:12px}svg text{fill:var(--ink)}
svg text.quiet,svg tspan.quiet{fill:var(--quiet)}
svg.curves{margin-top:8px}svg.lengths text{font-size:10px}svg text.inside{fill:#fff;font-size:10.5px}.axis{fill:none;
stroke:var(--line)}
.bars{fill:var(--c0)}
.limit{stroke:var(--error);stroke-dasharray:3 2;fill:none}.line{fill:none;stroke-width:1.4;stroke-linejoin:round}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.c6{--c:var(--c6)}
.c7{--c:var(--c7)}rect.quiet{--c:var(--c7);opacity:.55}.fill{fill:var(--c)}svg tspan.fill{fill:var(--c)}
.line{stroke:var(--c)}
details.bag{margin-top:8px;padding:8px 16px}details.bag[open]{padding-bottom:16px}
summary{cursor:pointer;list-style:none}summary::-webkit-details-marker{display:none}
.bag>summary{display:grid;grid-template-columns:minmax(150px,1.4fr) 70px minmax(120px,2fr) 74px 90px 130px;gap:12px;
align-items:center}.bag>summary>*{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bag>summary img{height:34px;width:auto;border-radius:3px;vertical-align:middle}
.strip{display:flex;flex-wrap:wrap;gap:4px}
.strip figure{margin:0;font-size:11px;color:var(--quiet)}.strip img{display:block;border-radius:5px}
input{font:inherit;padding:4px 10px;border:1px solid var(--line);border-radius:8px;background:var(--card);
color:var(--ink)}
.head{display:flex;justify-content:space-between;align-items:baseline}
.finding{display:grid;align-items:center;grid-template-columns:74px 180px 1fr 40px;gap:10px;padding:5px 0}
ul{margin:4px 0 10px 84px;padding:0 0 0 16px}li{overflow-wrap:anywhere}a{color:inherit}
"""

SCRIPT = """
const show=()=>{const e=document.getElementById(location.hash.slice(1));if(e&&e.tagName==='DETAILS')e.open=true};
addEventListener('hashchange',show);show();
const box=document.getElementById('search');
if(box)box.addEventListener('input',()=>{const w=box.value.toLowerCase();
for(const e of document.querySelectorAll('.bag'))e.hidden=!e.firstElementChild.textContent.toLowerCase().includes(w)});
"""
