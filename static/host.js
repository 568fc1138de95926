"use strict";
(() => {
  // lib/chatkit-component.ts
  var COMPONENT_URL = "https://cdn.platform.openai.com/deployments/chatkit/chatkit.js";
  var COMPONENT_LIMIT_MS = 2e4;
  var ALLOWLIST_URL = "https://platform.openai.com/settings/organization/security/domain-allowlist";
  var ComponentError = class extends Error {
    constructor(code, message) {
      super(message);
      this.code = code;
      this.name = "ComponentError";
      this.userMessage = code === "removed" ? "The chat has closed. It may not be allowed on this website. Please try again." : "The chat could not be loaded. Please try again.";
    }
  };
  var loading = null;
  function loadChatKit() {
    if (!loading) {
      loading = load();
      loading.catch(() => loading = null);
    }
    return loading;
  }
  function load() {
    return new Promise((resolve, reject) => {
      const own = document.querySelector(`script[src="${COMPONENT_URL}"]`);
      const script2 = own || document.createElement("script");
      const fail = (what) => {
        clearTimeout(timer);
        script2.remove();
        reject(new ComponentError("script_not_loaded", `${COMPONENT_URL} ${what}`));
      };
      const timer = setTimeout(() => fail("takes too long"), COMPONENT_LIMIT_MS);
      script2.addEventListener("error", () => fail("could not be loaded"));
      void customElements.whenDefined("openai-chatkit").then(() => {
        clearTimeout(timer);
        resolve();
      });
      if (own) return;
      script2.src = COMPONENT_URL;
      document.head.append(script2);
    });
  }
  function limitLoading(fail) {
    const timer = setTimeout(() => fail(blank("not_ready", "has not become ready")), COMPONENT_LIMIT_MS);
    return () => clearTimeout(timer);
  }
  function watchRemoval(element, fail) {
    const observer = new MutationObserver(() => {
      if (!element.isConnected) fail(blank("removed", "has removed itself from the page"));
    });
    if (element.parentNode) observer.observe(element.parentNode, { childList: true });
    return () => observer.disconnect();
  }
  function blank(code, what) {
    return new ComponentError(
      code,
      `ChatKit ${what}. ${location.host} may be missing in OpenAI's domain allowlist, ${ALLOWLIST_URL}`
    );
  }

  // lib/errors.ts
  var USER_MESSAGES = {
    configuration: "Unable to start chat. Please check configuration.",
    network: "Network connection lost. Please check your internet.",
    down: "Service temporarily down. Please try again.",
    busy: "Too many requests. Please try again in a moment.",
    again: "Unable to start chat. Please try again.",
    signIn: "Please sign in, and try again.",
    tooLong: "This message is too long. Please shorten it.",
    failed: "Something went wrong. Please try again."
  };
  var ServiceError = class extends Error {
    constructor(message, userMessage2, more = {}) {
      super(message);
      this.name = "ServiceError";
      this.userMessage = userMessage2;
      this.status = more.status;
      this.code = more.code;
      this.retryAfter = more.retryAfter;
      this.threadId = more.threadId;
    }
  };
  async function readJson(response) {
    try {
      const body = await response.json();
      return body !== null && typeof body === "object" ? body : null;
    } catch {
      return null;
    }
  }
  function refusal(response, body, what, sentence, threadId) {
    const { status } = response;
    const message = typeof (body == null ? void 0 : body.message) === "string" ? body.message : void 0;
    const code = typeof (body == null ? void 0 : body.code) === "string" ? body.code : void 0;
    const seconds = Number(response.headers.get("Retry-After") || NaN);
    const retryAfter = Number.isFinite(seconds) ? seconds : void 0;
    const technical = message ?? `${what}: ${response.statusText || status}`;
    return new ServiceError(technical, sentence(status, code, message), { status, code, retryAfter, threadId });
  }
  function networkError(cause, threadId) {
    return new ServiceError(cause instanceof Error ? cause.message : "Network error", USER_MESSAGES.network, { threadId });
  }
  function userMessage(error2, otherwise = USER_MESSAGES.failed) {
    if ("userMessage" in error2 && typeof error2.userMessage === "string") return error2.userMessage;
    return isNetworkFailure(error2) ? USER_MESSAGES.network : otherwise;
  }
  function isNetworkFailure({ message }) {
    return /failed to fetch|load failed|network ?error|error in input stream|connection was lost/i.test(message);
  }

  // lib/last-thread.ts
  var KEY = "chatkit.thread";
  function lastThread() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }
  function forgetThread() {
    remember(null);
  }
  function remember(id) {
    try {
      if (id) localStorage.setItem(KEY, id);
      else localStorage.removeItem(KEY);
    } catch {
    }
  }
  function threadKeeper() {
    let isLoading = false;
    return {
      onThreadChange: ({ threadId }) => remember(threadId),
      onThreadLoadStart: () => void (isLoading = true),
      onThreadLoadEnd: () => void (isLoading = false),
      /**
       * Returns what `error` says about the conversation that was to be loaded. One that is gone, deleted or another user's, is
       * forgotten: it would fail each time. After any other error it may load at the next try.
       */
      onError(error2) {
        const threadId = error2 instanceof ServiceError ? error2.threadId : void 0;
        if (!isLoading && !threadId) return null;
        isLoading = false;
        if (!isNotFound(error2)) return "not_loaded";
        if (!threadId || threadId === lastThread()) forgetThread();
        return "gone";
      }
    };
  }
  function isNotFound(error2) {
    return error2 instanceof ServiceError ? error2.status === 404 && error2.code === "not_found" : /\b404\b|not found/i.test(error2.message);
  }

  // lib/service.ts
  var DEFAULTS = { apiUrl: "http://localhost:8000", domainKey: null };
  var current = DEFAULTS;
  function setService({ apiUrl, domainKey }) {
    current = { apiUrl: apiUrl || DEFAULTS.apiUrl, domainKey: domainKey || DEFAULTS.domainKey };
  }
  function service() {
    return current;
  }

  // lib/chatkit-config.ts
  var CALL_LIMIT_MS = 15e3;
  var LONGEST_LIFE_SECONDS = 600;
  var MARGIN_MS = 15e3;
  var issued = /* @__PURE__ */ new Map();
  var newest = null;
  var underWay = null;
  var signIns = 0;
  var tokenSource;
  async function getClientSecret(existing) {
    if (existing && !hasRunOut(existing)) {
      console.log("Reusing existing ChatKit client secret");
      return existing;
    }
    if (existing && newest && !hasRunOut(newest)) return newest;
    if (!underWay) {
      const call2 = createSession().finally(() => {
        if (underWay === call2) underWay = null;
      });
      underWay = call2;
    }
    return underWay;
  }
  function describeSession(secret) {
    const session3 = issued.get(secret);
    return session3 ? { sessionId: session3.sessionId, secondsLeft: Math.max(0, (session3.lifeMs - ageMs(session3)) / 1e3) } : null;
  }
  function letRunOut(secret) {
    const session3 = issued.get(secret);
    if (session3) session3.lifeMs = session3.usefulMs = -Infinity;
  }
  var chatKitConfig = {
    api: { getClientSecret },
    theme: { primaryColor: "#0070f3", darkMode: false }
  };
  function now() {
    return { monotonic: performance.now(), wall: Date.now() };
  }
  function ageMs({ asked }) {
    return Math.max(performance.now() - asked.monotonic, Date.now() - asked.wall);
  }
  function hasRunOut(secret) {
    const session3 = issued.get(secret);
    return session3 !== void 0 && ageMs(session3) >= session3.usefulMs;
  }
  async function createSession() {
    console.log("Creating new ChatKit session");
    try {
      const asked = now();
      const signIn = signIns;
      const response = await call("POST");
      const body = await readJson(response);
      if (!response.ok) throw refusal(response, body, "Session creation failed", sentenceFor);
      const data = body == null ? void 0 : body.data;
      const secret = data == null ? void 0 : data.client_secret;
      if (typeof secret !== "string" || !secret) {
        throw new ServiceError(body ? "No client secret in response" : "Invalid response from server", USER_MESSAGES.again, {
          status: response.status
        });
      }
      remember2(secret, String(data == null ? void 0 : data.session_id), asked, data == null ? void 0 : data.expires_in);
      if (signIn !== signIns) letRunOut(secret);
      console.log("Got ChatKit session:", data == null ? void 0 : data.session_id);
      return secret;
    } catch (error2) {
      console.error("Error getting ChatKit session:", error2);
      throw error2;
    }
  }
  function remember2(secret, sessionId, asked, expiresIn) {
    const seconds = typeof expiresIn === "number" && expiresIn > 0 ? Math.min(expiresIn, LONGEST_LIFE_SECONDS) : LONGEST_LIFE_SECONDS;
    const lifeMs = seconds * 1e3;
    issued.set(secret, { sessionId, asked, lifeMs, usefulMs: lifeMs - Math.min(MARGIN_MS, lifeMs / 2) });
    newest = secret;
  }
  async function call(method, path = "") {
    const headers = { "Content-Type": "application/json" };
    const token = typeof tokenSource === "function" ? await tokenSource() : tokenSource;
    if (token) headers.Authorization = `Bearer ${token}`;
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), CALL_LIMIT_MS);
    try {
      return await fetch(`${service().apiUrl}/api/chatkit/sessions${path}`, {
        method,
        headers,
        credentials: "include",
        // the visitor's cookie, which keeps a visitor the same person
        signal: controller.signal
      });
    } catch (error2) {
      if (controller.signal.aborted) throw new ServiceError("The session request took too long", USER_MESSAGES.down);
      throw networkError(error2);
    } finally {
      clearTimeout(timer);
    }
  }
  function sentenceFor(status, code) {
    if (code === "authentication_required" || code === "invalid_token") return USER_MESSAGES.signIn;
    if (status === 429) return USER_MESSAGES.busy;
    if (status > 500) return USER_MESSAGES.down;
    return USER_MESSAGES.configuration;
  }

  // lib/chatkit-options.ts
  function chatKitApi(session3, listeners = {}) {
    const { apiUrl, domainKey } = service();
    if (!domainKey) return { getClientSecret: (existing) => session3.secret(existing) };
    return { url: `${apiUrl}/api/chatkit`, domainKey, fetch: chatFetch(session3, listeners) };
  }
  function chatKitTheme(theme) {
    const primary = theme == null ? void 0 : theme.primaryColor;
    return { colorScheme: (theme == null ? void 0 : theme.darkMode) ? "dark" : "light", ...primary && { color: { accent: { primary, level: 2 } } } };
  }
  function chatFetch(session3, { onMessage, onFailure = () => {
  } }) {
    return async (input, init) => {
      const request = await readRequest(input, init);
      const fail = (cause) => {
        if (!(cause instanceof Error && cause.name === "AbortError")) onFailure(networkError(cause, request.loads));
      };
      const send = async (secret2) => {
        const headers = new Headers((init == null ? void 0 : init.headers) || (input instanceof Request ? input.headers : void 0));
        headers.set("Authorization", `Bearer ${secret2}`);
        try {
          return await fetch(input instanceof Request ? input.clone() : input, { ...init, headers });
        } catch (cause) {
          fail(cause);
          throw cause;
        }
      };
      const secret = await session3.secret();
      let response = await send(secret);
      if (await isGone(response)) {
        session3.drop(secret);
        response = await send(await session3.secret());
      }
      if (!response.ok) {
        onFailure(refusal(response, await readJson(response.clone()), "The chat request failed", sentenceFor2, request.loads));
        return response;
      }
      onFailure(null);
      if (request.message) onMessage == null ? void 0 : onMessage(request.message);
      return isEventStream(response) ? watchStream(response, onFailure, fail) : response;
    };
  }
  function sentenceFor2(status, code, message) {
    if (status >= 500) return USER_MESSAGES.down;
    if (status === 429) return USER_MESSAGES.busy;
    if (status === 413) return USER_MESSAGES.tooLong;
    return code && message || USER_MESSAGES.failed;
  }
  function isEventStream(response) {
    return /^text\/event-stream\b/.test(response.headers.get("Content-Type") || "");
  }
  function watchStream(response, onFailure, onBreak) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read().catch((cause) => {
          onBreak(cause);
          throw cause;
        });
        if (done) return controller.close();
        const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          const error2 = errorIn(line);
          if (error2) onFailure(error2);
        }
        controller.enqueue(value);
      },
      cancel: (reason) => reader.cancel(reason)
    });
    return new Response(body, response);
  }
  function errorIn(line) {
    if (!line.startsWith('data: {"type":"error"')) return null;
    try {
      const { code, message } = JSON.parse(line.slice("data: ".length));
      return new ServiceError(message || `The answer failed: ${code}`, message || USER_MESSAGES.failed, { code });
    } catch {
      return null;
    }
  }
  async function isGone(response) {
    if (response.status !== 401) return false;
    const { code } = await response.clone().json().catch(() => ({}));
    return code === "client_secret_expired" || code === "client_secret_unknown";
  }
  async function readRequest(input, init) {
    const body = typeof (init == null ? void 0 : init.body) === "string" ? init.body : input instanceof Request ? await input.clone().text() : "";
    try {
      const { type, params } = JSON.parse(body);
      if (type === "threads.create" || type === "threads.add_user_message") return { message: messageText(params.input.content) };
      return type === "threads.get_by_id" ? { loads: params.thread_id } : {};
    } catch {
      return {};
    }
  }
  function messageText(content) {
    return content.map((part) => part.text).join("");
  }

  // lib/page-session.ts
  var _PageSession = class _PageSession {
    constructor(getClientSecret2) {
      this.getClientSecret = getClientSecret2;
      this.held = null;
    }
    /** The one session of all that get their secrets from this function, so that five chats on a page need one call. */
    static of(getClientSecret2) {
      const session3 = _PageSession.all.get(getClientSecret2) || new _PageSession(getClientSecret2);
      _PageSession.all.set(getClientSecret2, session3);
      return session3;
    }
    /** A secret that is alive. `existing` is what the caller has used so far. Throws what `getClientSecret` throws. */
    async secret(existing) {
      this.held = await this.getClientSecret(existing || this.held || void 0);
      return this.held;
    }
    /** The secret in use no longer works, whatever the clock says. Another one that has taken its place meanwhile is kept. */
    drop(secret = this.held) {
      if (this.held === secret) this.held = null;
    }
  };
  _PageSession.all = /* @__PURE__ */ new WeakMap();
  var PageSession = _PageSession;

  // host-page/advice.ts
  var ALLOWLIST = "On a public host that is nearly always the domain allowlist: add this host at platform.openai.com/settings/organization/security/domain-allowlist, and for a self-hosted chat set CHATKIT_DOMAIN_KEY to its key.";
  var ADVICE = {
    openai_api_key_missing: "Set OPENAI_API_KEY and restart, or set CHATKIT_BACKEND=selfhosted, which needs no key.",
    chatkit_workflow_missing: "Set CHATKIT_WORKFLOW_ID and restart, or set CHATKIT_BACKEND=selfhosted, which needs no workflow.",
    openai_authentication_failed: "OpenAI refuses the key: it is wrong or revoked. Set another OPENAI_API_KEY and restart.",
    openai_session_not_created: "Nearly always the key belongs to another project than the workflow. A machine-wide OPENAI_API_KEY comes before the one in .env. The log has what OpenAI answered. Since 30 November 2026 hosted workflows are gone: set CHATKIT_BACKEND=selfhosted.",
    openai_rate_limited: "Wait a moment. If it stays, look at the OpenAI project's limits and budget.",
    openai_unavailable: "OpenAI does not answer in time. Try again in a moment; status.openai.com says whether it is down.",
    origin_not_allowed: `The service does not know this address for its own: add ${location.origin} to CHATKIT_ALLOWED_ORIGINS and restart.`,
    database_unavailable: "The database of DATABASE_URL does not answer. Is it up?",
    service_busy: "The process does all it can at once, or is about to stop. Try again in a moment.",
    thread_not_active: "This conversation is locked or closed. Begin another one in the chat.",
    too_many_requests: "Wait a moment. The limits are set by RATE_LIMIT and CHATKIT_MAX_REQUESTS_PER_MINUTE.",
    authentication_required: "The service takes signed-in users only (AUTH_REQUIRED), and nobody is signed in on this page. Try it from your frontend.",
    script_not_loaded: "OpenAI's CDN can't be reached: no internet, an ad blocker, or a company's firewall. ChatKit comes from there and from nowhere else.",
    not_ready: `The frame stays blank. ${ALLOWLIST}`,
    removed: `ChatKit took itself away. ${ALLOWLIST}`
  };
  function adviceFor(error2, missing = []) {
    if (missing.length > 1 && /^(openai_api_key|chatkit_workflow)_missing$/.test(error2.code || "")) {
      return `Set ${missing.join(" and ")} and restart, or set CHATKIT_BACKEND=selfhosted, which needs neither.`;
    }
    if (error2.code && ADVICE[error2.code]) return ADVICE[error2.code];
    if (/domain verification/i.test(error2.message)) return ADVICE.removed;
    if (isOfTheNetwork(error2)) return "The service does not answer. Is it still running, and is this machine online?";
    return "The log of the service and the console of this browser have more about it.";
  }
  function isOfTheNetwork(error2) {
    return error2.name === "ServiceError" && error2.status === void 0 && error2.code === void 0;
  }
  function missingIn(message) {
    return message.match(/\b[A-Z]+_[A-Z_]+\b/g) || [];
  }

  // host-page/steps.ts
  var WAITING = ["waiting", "\u2026"];
  function steps(facts2) {
    return { settings: settings(facts2), session: session(facts2), script: script(facts2), ready: chat(facts2) };
  }
  function settings({ service: service2 }) {
    if (!service2) return WAITING;
    if (service2 === "unreachable") return ["failed", "the service does not answer"];
    return service2 === "ready" ? ["ok", "complete"] : ["failed", service2.notReady];
  }
  function session({ service: service2, session: session3 }) {
    if (!session3) return WAITING;
    if (session3 === "failed") return ["failed", "none"];
    if (service2 === "unreachable") return ["failed", "not without the service"];
    const seconds = Math.round(session3.secondsLeft);
    if (!seconds) return ["waiting", `${session3.id}, run out: the next message gets a new one`];
    return ["ok", `${session3.id}, ${seconds} s left`];
  }
  function script({ script: script2 }) {
    if (!script2) return WAITING;
    return script2 === "loaded" ? ["ok", "loaded from OpenAI\u2019s CDN"] : ["failed", "not loaded"];
  }
  function chat({ service: service2, session: session3, script: script2, component }) {
    if (script2 === "failed") return ["failed", "not without the component"];
    if (component === "failed") return ["failed", "not there"];
    if (service2 === "unreachable") return ["failed", "not without the service"];
    if (session3 === "failed") return ["failed", "not without a session"];
    if (service2 !== null && service2 !== "ready") return ["failed", "not before the settings are complete"];
    return component && session3 && service2 ? ["ok", "ready, say something"] : WAITING;
  }

  // host-page/host.ts
  var CHECK_MS = 1e4;
  setService({ apiUrl: location.origin, domainKey: document.body.dataset.domainKey });
  var pageSession = PageSession.of(getClientSecret);
  var facts = { service: null, session: null, script: null, component: null };
  var error = null;
  var shownSecret = null;
  var failedCall = null;
  var chat2 = null;
  var stopWatching = () => {
  };
  var beginnings = 0;
  var isChecking = false;
  var session2 = {
    async secret(existing) {
      try {
        shownSecret = await pageSession.secret(existing);
        if (facts.session === "failed") error = null;
        readSession();
        return shownSecret;
      } catch (reason) {
        facts.session = "failed";
        shownSecret = null;
        showError(reason);
        throw reason;
      }
    },
    drop: (secret) => pageSession.drop(secret)
  };
  function byId(id) {
    return document.getElementById(id);
  }
  function show() {
    for (const [step, [state, text]] of Object.entries(steps(facts))) {
      const shown = byId(step);
      if (shown.dataset.state !== state) shown.dataset.state = state;
      setText(shown.querySelector(".state"), text);
    }
    const notReady = facts.service !== null && typeof facts.service === "object" ? facts.service.notReady : "";
    if (error) {
      setText(byId("error-message"), error instanceof ServiceError && error.code ? error.message : userMessage(error));
      setText(byId("error-advice"), adviceFor(error, missingIn(notReady)));
    }
    byId("error").hidden = !error;
  }
  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  function readSession() {
    const described = shownSecret && describeSession(shownSecret);
    if (described) facts.session = { id: described.sessionId, secondsLeft: described.secondsLeft };
    show();
  }
  function report(reason) {
    console.error("ChatKit:", reason);
    showError(reason);
  }
  function showError(reason) {
    error = reason;
    show();
    if (isOfTheNetwork(reason)) void checkService();
  }
  async function checkService() {
    if (isChecking) return;
    isChecking = true;
    const wasUnreachable = facts.service === "unreachable";
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), CHECK_MS);
    try {
      const response = await fetch("/readyz", { signal: controller.signal });
      const { message } = await response.json();
      facts.service = response.ok ? "ready" : { notReady: message };
    } catch {
      facts.service = "unreachable";
    }
    clearTimeout(timer);
    isChecking = false;
    if (wasUnreachable && facts.service !== "unreachable") {
      if (facts.session === "failed") return begin();
      if (error && isOfTheNetwork(error)) error = null;
    }
    show();
  }
  async function begin() {
    const mine = ++beginnings;
    stopWatching();
    chat2 == null ? void 0 : chat2.remove();
    pageSession.drop();
    Object.assign(facts, { service: null, session: null, script: null, component: null });
    error = shownSecret = null;
    show();
    void checkService();
    session2.secret().catch(() => {
    });
    try {
      await loadChatKit();
    } catch (reason) {
      if (mine !== beginnings) return;
      facts.script = "failed";
      return report(reason);
    }
    if (mine !== beginnings) return;
    facts.script = "loaded";
    embed();
  }
  function embed() {
    const element = document.createElement("openai-chatkit");
    const fail = (reason) => {
      facts.component = "failed";
      report(reason);
    };
    const thread = threadKeeper();
    stopWatching();
    const stopLimit = limitLoading(fail);
    element.addEventListener("chatkit.ready", () => {
      stopLimit();
      facts.component = "ready";
      show();
    });
    element.addEventListener("chatkit.error", ({ detail }) => {
      if (facts.session === "failed") return;
      const reason = failedCall ?? detail.error;
      failedCall = null;
      if (thread.onError(reason) === "gone") return embed();
      report(reason);
    });
    element.addEventListener("chatkit.response.start", () => {
      error = null;
      show();
    });
    element.addEventListener("chatkit.thread.change", ({ detail }) => thread.onThreadChange(detail));
    element.addEventListener("chatkit.thread.load.start", thread.onThreadLoadStart);
    element.addEventListener("chatkit.thread.load.end", thread.onThreadLoadEnd);
    byId("chat").replaceChildren(element);
    const stopRemoval = watchRemoval(element, fail);
    stopWatching = () => {
      stopLimit();
      stopRemoval();
    };
    facts.component = null;
    chat2 = element;
    show();
    configure();
  }
  function configure() {
    chat2 == null ? void 0 : chat2.setOptions({
      api: chatKitApi(session2, { onFailure: (failure) => failedCall = failure }),
      theme: chatKitTheme({ ...chatKitConfig.theme, darkMode: document.documentElement.dataset.theme === "dark" }),
      initialThread: lastThread(),
      startScreen: {
        greeting: "What can I help with today?",
        prompts: [
          { label: "Say hello", prompt: "Hello!" },
          { label: "What can you do?", prompt: "What can you do?" }
        ]
      }
    });
  }
  function setDark(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    byId("dark").setAttribute("aria-pressed", String(dark));
    configure();
  }
  var systemDark = matchMedia("(prefers-color-scheme: dark)");
  byId("new").addEventListener("click", () => void begin());
  byId("run-out").addEventListener("click", () => {
    if (shownSecret) letRunOut(shownSecret);
    readSession();
  });
  byId("dark").addEventListener("click", () => setDark(document.documentElement.dataset.theme !== "dark"));
  systemDark.addEventListener("change", ({ matches }) => setDark(matches));
  setInterval(readSession, 1e3);
  setInterval(() => document.hidden || void checkService(), CHECK_MS);
  setDark(systemDark.matches);
  void begin();
})();
