// A click on an entry lights up its lines of code; one on a marked line, its entry, and then its next one.
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const said = document.getElementById('said');
let current = '';

function go(element, from) {                  // at once where both sides move: one smooth scroll stops another
  element.scrollIntoView({block: 'center', behavior: from && !calm.matches ? 'smooth' : 'auto'});
}

function show(id, from) {
  const card = document.getElementById(id);
  const lines = [...document.querySelectorAll(`[data-eq~="${id}"]`)];
  document.querySelectorAll('.lit').forEach(element => element.classList.remove('lit'));
  [card, ...lines].forEach(element => element.classList.add('lit'));
  if (from !== 'code' && lines.length) go(document.getElementById(card.dataset.first), from);
  if (from !== 'paper') go(card, from);
  current = id;
  history.replaceState(null, '', '#' + id);
  const count = lines.length === 1 ? '1 line' : (lines.length || 'no') + ' lines';
  said.textContent = `${card.dataset.number}: ${count} of code`;
}

function follow(id, from, card) {
  const target = document.getElementById(id);
  if (!target) return;
  if (card && target !== card) show(card.id, 'paper');
  if (target.matches('.eq')) show(id, from); else go(target, 'paper');
}

document.documentElement.classList.add('js');
document.addEventListener('click', event => {
  const link = event.target.closest('a');
  const line = event.target.closest('[data-eq]');
  const card = event.target.closest('.eq');
  if (link) {
    if (link.getAttribute('href')[0] !== '#') return;
    event.preventDefault();
    follow(link.hash.slice(1), line ? 'code' : card ? 'paper' : '', card);
  } else if (getSelection().toString()) {
    return;                                     // text was selected, to be copied
  } else if (line) {
    const ids = line.dataset.eq.split(' ');
    show(ids[(ids.indexOf(current) + 1) % ids.length], 'code');
  } else if (card) {
    show(card.id, 'paper');
  }
});
addEventListener('hashchange', () => follow(location.hash.slice(1)));
follow(location.hash.slice(1));
