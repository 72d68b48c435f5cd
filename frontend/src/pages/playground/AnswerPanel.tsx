import { FigureText } from '../../components/FigureText';
import { Icon } from '../../components/Icon';
import { Term } from '../../components/Term';
import type { Answer } from '../../lib/answer';
import { finishWords, tpotS, ttftS } from '../../lib/answer';
import { count, latency } from '../../lib/format';
import type { Chat } from './state';

export function AnswerPanel({ chat }: { chat: Chat }) {
  const { answer, problem } = chat;
  return (
    <section className="panel" aria-labelledby="answer">
      <div className="ph wide">
        <h2 id="answer">The answer</h2>
        <span className="sub" data-testid="answer-state">
          {stateWords(chat)}
        </span>
      </div>
      <div className="pb">
        {answer === null ? (
          <p className="k">It appears here, token by token, with what its timing says.</p>
        ) : (
          <>
            <div className="answer" data-testid="answer-text" aria-live="off">
              {answer.text}
            </div>
            <Facts answer={answer} classId={chat.classId ?? ''} />
          </>
        )}
        {problem === null ? null : (
          <p className="msgrow errr" role="alert">
            <Icon name="bad" />
            <span>
              {problem.message}
              {problem.status === 0 ? '' : ` (${problem.status})`}
            </span>
          </p>
        )}
      </div>
    </section>
  );
}

function stateWords({ answer, isRunning, isStopped, problem }: Chat): string {
  if (answer === null) return '';
  if (isStopped) return 'stopped by you';
  if (problem !== null) return answer.text === '' ? 'refused' : 'cut off';
  if (isRunning) return answer.firstAt === null ? 'waiting for the first token' : 'streaming';
  return answer.finishReason === null ? 'ended' : finishWords(answer.finishReason);
}

function Facts({ answer, classId }: { answer: Answer; classId: string }) {
  return (
    <dl className="facts">
      <div>
        <dt>
          <Term name="ttft">TTFT</Term>
        </dt>
        <dd data-testid="answer-ttft">
          <FigureText figure={latency(ttftS(answer))} />
        </dd>
      </div>
      <div>
        <dt>
          <Term name="tpot">TPOT</Term>
        </dt>
        <dd data-testid="answer-tpot">
          <FigureText figure={latency(tpotS(answer))} />
        </dd>
      </div>
      <div>
        <dt>Tokens</dt>
        <dd>{tokenWords(answer)}</dd>
      </div>
      <div>
        <dt>Class</dt>
        <dd data-testid="answer-class">{classId}</dd>
      </div>
      <div>
        <dt>Request</dt>
        <dd className="id" data-testid="answer-id">
          {answer.requestId ?? '–'}
        </dd>
      </div>
    </dl>
  );
}

function tokenWords(answer: Answer): string {
  if (answer.numOutputTokens === null) return '–';
  return `${count(answer.numPromptTokens ?? 0)} in, ${count(answer.numOutputTokens)} out`;
}
