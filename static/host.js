"use strict";
(() => {
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
    constructor(message, userMessage2, details = {}) {
      super(message);
      this.name = "ServiceError";
      this.userMessage = userMessage2;
      this.status = details.status;
      this.code = details.code;
      this.retryAfter = details.retryAfter;
      this.threadId = details.threadId;
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
  function responseError(response, body, fallback, userMessageFor3, threadId) {
    const { status } = response;
    const message = typeof (body == null ? void 0 : body.message) === "string" ? body.message : void 0;
    const code = typeof (body == null ? void 0 : body.code) === "string" ? body.code : void 0;
    const seconds = Number(response.headers.get("Retry-After") || NaN);
    const retryAfter2 = Number.isFinite(seconds) ? seconds : void 0;
    const technical = message ?? `${fallback}: ${response.statusText || status}`;
    return new ServiceError(technical, userMessageFor3(status, code, message), { status, code, retryAfter: retryAfter2, threadId });
  }
  function networkError(cause, threadId) {
    return new ServiceError(cause instanceof Error ? cause.message : "Network error", USER_MESSAGES.network, { threadId });
  }
  function userMessage(error2, fallback = USER_MESSAGES.failed) {
    if ("userMessage" in error2 && typeof error2.userMessage === "string") return error2.userMessage;
    return isNetworkFailure(error2) ? USER_MESSAGES.network : fallback;
  }
  function isNetworkFailure({ message }) {
    return /failed to fetch|load failed|network ?error|error in input stream|connection was lost/i.test(message);
  }

  // lib/page-session.ts
  var _PageSession = class _PageSession {
    constructor(getClientSecret2) {
      this.getClientSecret = getClientSecret2;
      this.current = null;
    }
    /** The session for this `getClientSecret`, always the same one, so that several chats on a page need one call. */
    static of(getClientSecret2) {
      const session3 = _PageSession.all.get(getClientSecret2) || new _PageSession(getClientSecret2);
      _PageSession.all.set(getClientSecret2, session3);
      return session3;
    }
    /** Return a valid secret. `existing` is the one that the caller used last. Throws the errors of `getClientSecret`. */
    async secret(existing) {
      this.current = await this.getClientSecret(existing || this.current || void 0);
      return this.current;
    }
    /** Discard a secret that was rejected. A newer one that has replaced it meanwhile is kept. */
    invalidate(secret = this.current) {
      if (this.current === secret) this.current = null;
    }
  };
  _PageSession.all = /* @__PURE__ */ new WeakMap();
  var PageSession = _PageSession;
  async function withSecret(session3, send) {
    const secret = await session3.secret();
    const response = await send(secret);
    if (!await isSecretRejected(response)) return response;
    session3.invalidate(secret);
    return send(await session3.secret());
  }
  async function isSecretRejected(response) {
    if (response.status !== 401) return false;
    const { code } = await response.clone().json().catch(() => ({}));
    return code === "client_secret_expired" || code === "client_secret_unknown";
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

  // lib/active-run.ts
  var RUN_HEADER = "ChatKit-Run";
  var GOES_ON = ["ChatKit-On-Disconnect", "continue"];
  var POLL_MS = 1e3;
  var SLOWDOWN = 1.1;
  var MAX_POLL_MS = 5e3;
  var MAX_FAILED_POLL_MS = 1e4;
  var MAX_RETRY_AFTER_MS = 6e4;
  var STOP_ATTEMPTS = 4;
  var NEWEST_ITEMS = 100;
  var RUN_MESSAGES = {
    active: "A response is being written\u2026",
    interrupted: "The response was interrupted.",
    unreachable: USER_MESSAGES.network,
    not_stopped: "The response could not be stopped.",
    not_repeated: "The response could not be repeated."
  };
  function canStop(status) {
    return status === "active" || status === "not_stopped";
  }
  function canRetry(status) {
    return status === "interrupted" || status === "not_repeated";
  }
  var isUnloading = false;
  if (typeof window !== "undefined") {
    window.addEventListener("pagehide", () => isUnloading = true);
    window.addEventListener("pageshow", () => isUnloading = false);
  }
  var RunFollower = class {
    /** `onStatus` is called with the status to show, `null` for none. It may be called with the same one again. */
    constructor(session3, onStatus) {
      this.session = session3;
      this.onStatus = onStatus;
      this.fetchUpdates = null;
      this.followed = null;
      this.shown = null;
    }
    /** Set the function that updates the chat: that of ChatKit's component. Nothing is followed before that. */
    connect(fetchUpdates) {
      this.fetchUpdates = fetchUpdates;
    }
    /**
     * Look for a run of a conversation that is about to be loaded, and follow it. Before loading, because a run that ends
     * in between would leave an incomplete text on the page.
     */
    async beforeLoad(threadId) {
      var _a;
      this.shown = threadId;
      if (((_a = this.followed) == null ? void 0 : _a.threadId) === threadId && this.followed.isPolled) return;
      const followed = this.start(threadId);
      const status = await this.find(threadId).catch(() => null);
      if (this.followed !== followed) return;
      if (status) this.onStatus(status);
      else this.followed = null;
      if (status === "active") void this.poll(followed, POLL_MS);
    }
    /** Follow the run of a conversation whose connection was cut. */
    follow(threadId, firstPause = 0) {
      void this.poll(this.start(threadId), firstPause);
    }
    /** The run that is followed or interrupted, if any. */
    get runId() {
      var _a;
      return (_a = this.followed) == null ? void 0 : _a.runId;
    }
    /**
     * Look for the run of a turn whose connection was cut before the response came, and return its id if it has begun. The
     * conversation is followed in any case, because the service may not be reachable yet. `before` is the run that was there already.
     */
    async recover(threadId, before) {
      const followed = this.start(threadId);
      const status = await this.find(threadId).catch(() => null);
      void this.poll(followed, 0, true);
      return status === "active" && followed.runId !== before ? followed.runId : null;
    }
    /**
     * Stop a run whose response the user has aborted. If that fails, the run is followed. Does nothing while the page is being
     * unloaded, because that is not the user's stop.
     */
    async abort(runId, threadId = null) {
      if (isUnloading || await this.tryToStop(runId)) return;
      const followed = this.start(threadId);
      this.showNotStopped(followed, runId);
      void this.poll(followed, POLL_MS);
    }
    /** Stop the followed run for the user, and update the chat with the text so far. */
    async stop() {
      const { followed } = this;
      if (!(followed == null ? void 0 : followed.runId) || followed.isStopping) return;
      const { runId, threadId } = followed;
      followed.isStopping = true;
      const isStopped = await this.tryToStop(runId);
      followed.isStopping = false;
      if (!isStopped) return this.showNotStopped(followed, runId);
      if (this.followed !== followed) return;
      if (threadId === null) this.leave();
      else this.follow(threadId, POLL_MS);
    }
    /** Stop following, because the chat is removed, until another one is connected. */
    dispose() {
      this.leave();
      this.fetchUpdates = this.shown = null;
    }
    /** Stop following: a new response begins. Returns the conversation with the run that was followed or interrupted, if any. */
    leave() {
      if (!this.followed) return null;
      const { threadId } = this.followed;
      this.followed = null;
      this.onStatus(null);
      return threadId;
    }
    /** Stop following if the chat shows another conversation. */
    show(threadId) {
      var _a;
      this.shown = threadId;
      if (((_a = this.followed) == null ? void 0 : _a.threadId) !== threadId) this.leave();
    }
    /** Retry the interrupted response, and follow the new one. */
    async retry() {
      var _a;
      const { followed } = this;
      const threadId = followed == null ? void 0 : followed.threadId;
      if (!threadId) return;
      try {
        const items = await this.post("items.list", { thread_id: threadId, order: "desc", limit: NEWEST_ITEMS });
        const page = await items.json();
        const message = page.data.find(({ type }) => type === "user_message");
        const response = await this.post("threads.retry_after_item", { thread_id: threadId, item_id: message == null ? void 0 : message.id });
        void ((_a = response.body) == null ? void 0 : _a.cancel());
        if (this.followed === followed) this.follow(threadId);
      } catch (cause) {
        console.error(RUN_MESSAGES.not_repeated, cause);
        if (this.followed === followed) this.onStatus("not_repeated");
      }
    }
    /** Follow nothing but what is started here, and not even that if the chat is removed or shows another conversation. */
    start(threadId) {
      this.leave();
      const followed = { threadId, isPolled: false };
      if (this.fetchUpdates && (this.shown ?? threadId) === threadId) this.followed = followed;
      return followed;
    }
    /** Stop a run, in several attempts. Returns whether it has ended. */
    async tryToStop(runId) {
      for (let attempt = 1; ; attempt++) {
        try {
          const response = await call(this.session, "DELETE", `/runs/${encodeURIComponent(runId)}`);
          if (response.ok || response.status === 404) return true;
          throw await failure(response, "The stop failed");
        } catch (cause) {
          const { status } = cause instanceof ServiceError ? cause : {};
          if (attempt === STOP_ATTEMPTS || status !== void 0 && status !== 429 && status !== 503) {
            console.error(RUN_MESSAGES.not_stopped, cause);
            return false;
          }
          await sleep(Math.max(2 ** (attempt - 1) * 1e3, retryAfter(cause)));
        }
      }
    }
    showNotStopped(followed, runId) {
      if (this.followed !== followed) return;
      followed.runId = followed.notStopped = runId;
      this.onStatus("not_stopped");
    }
    /** `isQuiet`: the page shows already that the service can't be reached. */
    async poll(followed, firstPause, isQuiet = false) {
      const { threadId } = followed;
      if (threadId === null) return;
      followed.isPolled = true;
      let pause = firstPause;
      let nextPause = POLL_MS;
      let failedPause = POLL_MS;
      for (; ; ) {
        await sleep(pause);
        try {
          if (this.followed !== followed) return;
          const status = await this.find(threadId);
          if (this.followed !== followed) return;
          await this.fetchUpdates();
          if (this.followed !== followed) return;
          if (!status) return void this.leave();
          this.onStatus(status === "active" && followed.notStopped === followed.runId ? "not_stopped" : status);
          if (status === "interrupted") {
            followed.isPolled = false;
            return;
          }
          pause = nextPause;
          nextPause = Math.min(SLOWDOWN * nextPause, MAX_POLL_MS);
          failedPause = POLL_MS;
          isQuiet = false;
        } catch (cause) {
          if (this.followed !== followed) return;
          const { status } = cause instanceof ServiceError ? cause : {};
          if (status === 404) await this.fetchUpdates().catch(() => {
          });
          if (this.followed !== followed) return;
          if (status === 404 || status === 401) return void this.leave();
          if (status !== 429 && !isQuiet) this.onStatus("unreachable");
          pause = Math.max(failedPause, retryAfter(cause));
          failedPause = Math.min(2 * failedPause, MAX_FAILED_POLL_MS);
        }
      }
    }
    /** The status of the conversation's run; `null` if it has none. */
    async find(threadId) {
      var _a;
      const response = await call(this.session, "GET", `/threads/${encodeURIComponent(threadId)}/run`);
      if (!response.ok) throw await failure(response, "The run could not be looked up");
      const { data } = await response.json();
      if (((_a = this.followed) == null ? void 0 : _a.threadId) === threadId) this.followed.runId = data == null ? void 0 : data.id;
      return (data == null ? void 0 : data.status) ?? null;
    }
    async post(type, params) {
      const response = await call(this.session, "POST", "", JSON.stringify({ type, params }));
      if (!response.ok) throw await failure(response, `${type} failed`);
      return response;
    }
  };
  function sleep(milliseconds) {
    return new Promise((resolve) => setTimeout(resolve, milliseconds));
  }
  function retryAfter(cause) {
    const seconds = cause instanceof ServiceError && cause.retryAfter || 0;
    return Math.min(seconds * 1e3, MAX_RETRY_AFTER_MS);
  }
  async function failure(response, message) {
    return responseError(response, await readJson(response), message, () => USER_MESSAGES.failed);
  }
  function call(session3, method, path, body) {
    return withSecret(session3, (secret) => {
      const headers = new Headers([["Authorization", `Bearer ${secret}`]]);
      if (body) {
        headers.set("Content-Type", "application/json");
        headers.set(...GOES_ON);
      }
      return fetch(`${service().apiUrl}/api/chatkit${path}`, { method, headers, body, keepalive: method === "DELETE" });
    });
  }

  // lib/chatkit-component.ts
  var COMPONENT_URL = "https://cdn.platform.openai.com/deployments/chatkit/chatkit.js";
  var COMPONENT_TIMEOUT_MS = 2e4;
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
      const existing = document.querySelector(`script[src="${COMPONENT_URL}"]`);
      const script2 = existing || document.createElement("script");
      const fail = (reason) => {
        clearTimeout(timer);
        script2.remove();
        reject(new ComponentError("script_not_loaded", `${COMPONENT_URL} ${reason}`));
      };
      const timer = setTimeout(() => fail("timed out"), COMPONENT_TIMEOUT_MS);
      script2.addEventListener("error", () => fail("could not be loaded"));
      void customElements.whenDefined("openai-chatkit").then(() => {
        clearTimeout(timer);
        resolve();
      });
      if (existing) return;
      script2.src = COMPONENT_URL;
      document.head.append(script2);
    });
  }
  function startReadyTimeout(fail) {
    const timer = setTimeout(() => fail(allowlistError("not_ready", "has not become ready")), COMPONENT_TIMEOUT_MS);
    return () => clearTimeout(timer);
  }
  function watchRemoval(element, fail) {
    const observer = new MutationObserver(() => {
      if (!element.isConnected) fail(allowlistError("removed", "has removed itself from the page"));
    });
    if (element.parentNode) observer.observe(element.parentNode, { childList: true });
    return () => observer.disconnect();
  }
  function allowlistError(code, what) {
    return new ComponentError(
      code,
      `ChatKit ${what}. ${location.host} may be missing in OpenAI's domain allowlist, ${ALLOWLIST_URL}`
    );
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
    storeThread(null);
  }
  function storeThread(id) {
    try {
      if (id) localStorage.setItem(KEY, id);
      else localStorage.removeItem(KEY);
    } catch {
    }
  }
  function trackLastThread() {
    let isLoading = false;
    return {
      onThreadChange: ({ threadId }) => storeThread(threadId),
      onThreadLoadStart: () => void (isLoading = true),
      onThreadLoadEnd: () => void (isLoading = false),
      /**
       * Return whether `error` means that a conversation was not found or failed to load. One that was not found, because it was
       * deleted or belongs to another user, is forgotten: it would fail again. After any other error a retry may load it.
       */
      onError(error2) {
        const threadId = error2 instanceof ServiceError ? error2.threadId : void 0;
        if (!isLoading && !threadId) return null;
        isLoading = false;
        if (!isNotFound(error2)) return "not_loaded";
        if (!threadId || threadId === lastThread()) forgetThread();
        return "not_found";
      }
    };
  }
  function isNotFound(error2) {
    return error2 instanceof ServiceError ? error2.status === 404 && error2.code === "not_found" : /\b404\b|not found/i.test(error2.message);
  }

  // lib/chatkit-config.ts
  var CALL_TIMEOUT_MS = 15e3;
  var MAX_LIFETIME_SECONDS = 600;
  var EXPIRY_MARGIN_MS = 15e3;
  var issued = /* @__PURE__ */ new Map();
  var newest = null;
  var pending = null;
  var authChanges = 0;
  var tokenSource;
  async function getClientSecret(existing) {
    if (existing && !isExpired(existing)) {
      console.log("Reusing existing ChatKit client secret");
      return existing;
    }
    if (existing && newest && !isExpired(newest)) return newest;
    if (!pending) {
      const call3 = createSession().finally(() => {
        if (pending === call3) pending = null;
      });
      pending = call3;
    }
    return pending;
  }
  function describeSession(secret) {
    const session3 = issued.get(secret);
    return session3 ? { sessionId: session3.sessionId, secondsLeft: Math.max(0, (session3.lifetimeMs - ageMs(session3)) / 1e3) } : null;
  }
  function expire(secret) {
    const session3 = issued.get(secret);
    if (session3) session3.lifetimeMs = session3.reusableMs = -Infinity;
  }
  var chatKitConfig = {
    api: { getClientSecret },
    theme: { primaryColor: "#0070f3", darkMode: false }
  };
  function now() {
    return { monotonic: performance.now(), wall: Date.now() };
  }
  function ageMs({ requestedAt }) {
    return Math.max(performance.now() - requestedAt.monotonic, Date.now() - requestedAt.wall);
  }
  function isExpired(secret) {
    const session3 = issued.get(secret);
    return session3 !== void 0 && ageMs(session3) >= session3.reusableMs;
  }
  async function createSession() {
    console.log("Creating new ChatKit session");
    try {
      const requestedAt = now();
      const authChangesBefore = authChanges;
      const response = await call2("POST");
      const body = await readJson(response);
      if (!response.ok) throw responseError(response, body, "Session creation failed", userMessageFor);
      const data = body == null ? void 0 : body.data;
      const secret = data == null ? void 0 : data.client_secret;
      if (typeof secret !== "string" || !secret) {
        throw new ServiceError(body ? "No client secret in response" : "Invalid response from server", USER_MESSAGES.again, {
          status: response.status
        });
      }
      remember(secret, String(data == null ? void 0 : data.session_id), requestedAt, data == null ? void 0 : data.expires_in);
      if (authChanges !== authChangesBefore) expire(secret);
      console.log("Got ChatKit session:", data == null ? void 0 : data.session_id);
      return secret;
    } catch (error2) {
      console.error("Error getting ChatKit session:", error2);
      throw error2;
    }
  }
  function remember(secret, sessionId, requestedAt, expiresIn) {
    const seconds = typeof expiresIn === "number" && expiresIn > 0 ? Math.min(expiresIn, MAX_LIFETIME_SECONDS) : MAX_LIFETIME_SECONDS;
    const lifetimeMs = seconds * 1e3;
    issued.set(secret, {
      sessionId,
      requestedAt,
      lifetimeMs,
      reusableMs: lifetimeMs - Math.min(EXPIRY_MARGIN_MS, lifetimeMs / 2)
    });
    newest = secret;
  }
  async function call2(method, path = "") {
    const headers = { "Content-Type": "application/json" };
    const token = typeof tokenSource === "function" ? await tokenSource() : tokenSource;
    if (token) headers.Authorization = `Bearer ${token}`;
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), CALL_TIMEOUT_MS);
    try {
      return await fetch(`${service().apiUrl}/api/chatkit/sessions${path}`, {
        method,
        headers,
        credentials: "include",
        // the cookie that identifies an anonymous visitor
        signal: controller.signal
      });
    } catch (error2) {
      if (controller.signal.aborted) throw new ServiceError("The session request timed out", USER_MESSAGES.down);
      throw networkError(error2);
    } finally {
      clearTimeout(timer);
    }
  }
  function userMessageFor(status, code) {
    if (code === "authentication_required" || code === "invalid_token") return USER_MESSAGES.signIn;
    if (status === 429) return USER_MESSAGES.busy;
    if (status > 500) return USER_MESSAGES.down;
    return USER_MESSAGES.configuration;
  }

  // lib/chatkit-options.ts
  var SILENCE_MS = 3e4;
  function chatKitApi(session3, listeners = {}) {
    const { apiUrl, domainKey } = service();
    if (!domainKey) return { getClientSecret: (existing) => session3.secret(existing) };
    return {
      url: `${apiUrl}/api/chatkit`,
      domainKey,
      fetch: chatFetch(session3, listeners),
      uploadStrategy: { type: "two_phase" }
    };
  }
  async function loadChoices() {
    const { apiUrl, domainKey } = service();
    if (!domainKey) return null;
    try {
      const response = await fetch(`${apiUrl}/api/chatkit/composer`);
      const { data } = await response.json();
      return Object.keys(data).length > 0 ? data : null;
    } catch (cause) {
      console.error("The models and tools to choose from could not be loaded:", cause);
      return null;
    }
  }
  function chatKitTheme(theme) {
    const primary = theme == null ? void 0 : theme.primaryColor;
    return { colorScheme: (theme == null ? void 0 : theme.darkMode) ? "dark" : "light", ...primary && { color: { accent: { primary, level: 2 } } } };
  }
  function chatFetch(session3, { onMessage, onFailure = () => {
  }, runs: runs2 }) {
    const serviceOrigin = originOf(service().apiUrl);
    return async (input, init) => {
      if (originOf(input) !== serviceOrigin) return fetch(input, init);
      const request = await readRequest(input, init);
      const isFollowed = runs2 !== void 0 && request.isTurn === true;
      const signal = (init == null ? void 0 : init.signal) ?? (input instanceof Request ? input.signal : null);
      const reportNetworkError = (cause) => {
        if (!(cause instanceof Error && cause.name === "AbortError")) onFailure(networkError(cause, request.threadId));
      };
      let isCut = false;
      const send = async (secret) => {
        const headers = new Headers((init == null ? void 0 : init.headers) || (input instanceof Request ? input.headers : void 0));
        headers.set("Authorization", `Bearer ${secret}`);
        if (isFollowed) headers.set(...GOES_ON);
        try {
          const options = { ...init, headers, ...isFollowed && { signal: null } };
          return await fetch(input instanceof Request ? input.clone() : input, options);
        } catch (cause) {
          isCut = isFollowed;
          reportNetworkError(cause);
          throw cause;
        }
      };
      if (request.threadId) await (runs2 == null ? void 0 : runs2.beforeLoad(request.threadId));
      const before = runs2 == null ? void 0 : runs2.runId;
      const left = isFollowed && !request.isAction && runs2.leave();
      const goOn = () => {
        if (left && !isCut) runs2.follow(left);
      };
      const pending2 = withSecret(session3, send).catch(async (cause) => {
        const runId2 = isCut && request.turnsThread && await runs2.recover(request.turnsThread, before);
        if (!runId2) throw cause;
        return new Response("", { headers: { "Content-Type": "text/event-stream", [RUN_HEADER]: runId2 } });
      });
      const response = await (isFollowed ? untilAborted(pending2, signal, (late) => abandon(runs2, late, request.turnsThread)) : pending2).catch((cause) => {
        goOn();
        throw cause;
      });
      if (!response.ok) {
        goOn();
        const body = await readJson(response.clone());
        onFailure(responseError(response, body, "The chat request failed", userMessageFor2, request.threadId));
        return response;
      }
      onFailure(null);
      if (request.message) onMessage == null ? void 0 : onMessage(request.message);
      if (!isEventStream(response)) return response;
      const runId = isFollowed && response.headers.get(RUN_HEADER);
      const run = runId ? { signal, threadId: request.turnsThread, stop: runs2.abort.bind(runs2, runId), onCut: runs2.follow.bind(runs2) } : null;
      return watchStream(response, onFailure, reportNetworkError, run);
    };
  }
  function originOf(input) {
    var _a;
    return new URL(input instanceof Request ? input.url : input, (_a = globalThis.location) == null ? void 0 : _a.href).origin;
  }
  function untilAborted(pending2, signal, onLate) {
    return new Promise((resolve, reject) => {
      const abort = () => {
        reject(aborted());
        pending2.then(onLate, () => {
        });
      };
      if (signal == null ? void 0 : signal.aborted) return abort();
      signal == null ? void 0 : signal.addEventListener("abort", abort);
      const settled = () => signal == null ? void 0 : signal.removeEventListener("abort", abort);
      pending2.then(resolve, reject).finally(settled);
    });
  }
  function abandon(runs2, response, threadId) {
    var _a;
    const runId = response.headers.get(RUN_HEADER);
    if (runId) void runs2.abort(runId, threadId);
    void ((_a = response.body) == null ? void 0 : _a.cancel());
  }
  function aborted() {
    return new DOMException("The request was aborted.", "AbortError");
  }
  function userMessageFor2(status, code, message) {
    if (status >= 500) return USER_MESSAGES.down;
    if (code === "request_refused" && message) return message;
    if (status === 429) return USER_MESSAGES.busy;
    if (status === 413) return USER_MESSAGES.tooLong;
    return code && message || USER_MESSAGES.failed;
  }
  function isEventStream(response) {
    return /^text\/event-stream\b/.test(response.headers.get("Content-Type") || "");
  }
  function watchStream(response, onFailure, onDisconnect, run) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let incompleteLine = "";
    let threadId = run == null ? void 0 : run.threadId;
    let stop = () => {
    };
    const body = new ReadableStream({
      start(controller) {
        var _a, _b;
        if (!run) return;
        const abort = () => {
          stop();
          controller.error(aborted());
          void reader.cancel().catch(() => {
          });
        };
        stop = () => {
          var _a2;
          (_a2 = run.signal) == null ? void 0 : _a2.removeEventListener("abort", abort);
          stop = () => {
          };
          run.stop(threadId);
        };
        (_a = run.signal) == null ? void 0 : _a.addEventListener("abort", abort);
        if ((_b = run.signal) == null ? void 0 : _b.aborted) abort();
      },
      async pull(controller) {
        const { done, value } = await readInTime(reader).catch((cause) => {
          void reader.cancel().catch(() => {
          });
          if (!run || threadId === void 0) {
            onDisconnect(cause);
            throw cause;
          }
          run.onCut(threadId);
          return { done: true, value: void 0 };
        });
        if (done || !value) {
          stop = () => {
          };
          return controller.close();
        }
        const lines = (incompleteLine + decoder.decode(value, { stream: true })).split("\n");
        incompleteLine = lines.pop();
        for (const line of lines) {
          const error2 = errorIn(line);
          if (error2) onFailure(error2);
          if (run && threadId === void 0) threadId = createdThreadIn(line);
        }
        controller.enqueue(value);
      },
      cancel(reason) {
        stop();
        return reader.cancel(reason);
      }
    });
    return new Response(body, response);
  }
  function readInTime(reader) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new TypeError("Network error: no data for 30 s")), SILENCE_MS);
      const received = () => clearTimeout(timer);
      reader.read().then(resolve, reject).finally(received);
    });
  }
  function createdThreadIn(line) {
    if (!line.startsWith('data: {"type":"thread.created"')) return void 0;
    return JSON.parse(line.slice("data: ".length)).thread.id;
  }
  function errorIn(line) {
    if (!line.startsWith('data: {"type":"error"')) return null;
    try {
      const { code, message } = JSON.parse(line.slice("data: ".length));
      return new ServiceError(message || `The response failed: ${code}`, message || USER_MESSAGES.failed, { code });
    } catch {
      return null;
    }
  }
  var TURNS = [
    "threads.create",
    "threads.add_user_message",
    "threads.add_client_tool_output",
    "threads.add_structured_input",
    "threads.retry_after_item",
    "threads.custom_action"
  ];
  async function readRequest(input, init) {
    const body = typeof (init == null ? void 0 : init.body) === "string" ? init.body : input instanceof Request ? await input.clone().text() : "";
    try {
      const { type, params } = JSON.parse(body);
      if (type === "threads.get_by_id") return { threadId: params.thread_id };
      const turn = { isTurn: TURNS.includes(type), isAction: type === "threads.custom_action", turnsThread: params.thread_id };
      if (type !== "threads.create" && type !== "threads.add_user_message") return turn;
      return { message: messageText(params.input.content), ...turn };
    } catch {
      return {};
    }
  }
  function messageText(content) {
    return content.map((part) => part.text).join("");
  }

  // host-page/advice.ts
  var ALLOWLIST = "On a public host this is usually the domain allowlist: add this host at platform.openai.com/settings/organization/security/domain-allowlist, and for a self-hosted chat set CHATKIT_DOMAIN_KEY to its key.";
  var ADVICE = {
    openai_api_key_missing: "Set OPENAI_API_KEY and restart, or set CHATKIT_BACKEND=selfhosted, which needs no key.",
    chatkit_workflow_missing: "Set CHATKIT_WORKFLOW_ID and restart, or set CHATKIT_BACKEND=selfhosted, which needs no workflow.",
    openai_authentication_failed: "OpenAI rejected the key: it is wrong or revoked. Set another OPENAI_API_KEY and restart.",
    openai_session_not_created: "Usually the key belongs to another project than the workflow. An OPENAI_API_KEY in the environment overrides .env. The log has the status of OpenAI. Hosted workflows ended on 30 November 2026: set CHATKIT_BACKEND=selfhosted.",
    openai_rate_limited: "Wait a moment. If it persists, check the limits and the budget of the OpenAI project.",
    openai_unavailable: "OpenAI does not respond in time. Try again in a moment, or check status.openai.com.",
    origin_not_allowed: `This origin is not allowed: add ${location.origin} to CHATKIT_ALLOWED_ORIGINS and restart.`,
    database_unavailable: "The database of DATABASE_URL does not respond, or is full. The log says which.",
    service_busy: "The process is at its concurrency limit, or shutting down. Try again in a moment.",
    thread_not_active: "This conversation is locked or closed. Start another one in the chat.",
    request_refused: "The server of CHATKIT_AGENT refused this, with the message above.",
    too_many_requests: "Wait a moment. The limits are set by RATE_LIMIT and CHATKIT_MAX_REQUESTS_PER_MINUTE.",
    authentication_required: "The service requires signed-in users (AUTH_REQUIRED), and this page has no sign-in. Try it from your frontend.",
    script_not_loaded: "OpenAI's CDN, the only source of ChatKit, can't be reached: no internet connection, an ad blocker, or a firewall. Then choose New session.",
    not_ready: `The frame stays blank. ${ALLOWLIST}`,
    removed: `ChatKit has removed itself. ${ALLOWLIST}`
  };
  function adviceFor(error2, missing = []) {
    if (missing.length > 1 && /^(openai_api_key|chatkit_workflow)_missing$/.test(error2.code || "")) {
      return `Set ${missing.join(" and ")} and restart, or set CHATKIT_BACKEND=selfhosted, which needs neither.`;
    }
    if (error2.code && ADVICE[error2.code]) return ADVICE[error2.code];
    if (/domain verification/i.test(error2.message)) return ADVICE.removed;
    if (isNetworkError(error2)) return "The service does not respond. Is it still running, and is this machine online?";
    return "See the log of the service and the console of this browser.";
  }
  function isNetworkError(error2) {
    return error2.name === "ServiceError" && error2.status === void 0 && error2.code === void 0;
  }
  function missingSettings(message) {
    return message.match(/\b[A-Z]+_[A-Z_]+\b/g) || [];
  }

  // host-page/steps.ts
  var WAITING = ["waiting", "\u2026"];
  function steps(facts2) {
    return { settings: settings(facts2), session: session(facts2), script: script(facts2), ready: chat(facts2) };
  }
  function settings({ service: service2 }) {
    if (!service2) return WAITING;
    if (service2 === "unreachable") return ["failed", "the service does not respond"];
    return service2 === "ready" ? ["ok", "complete"] : ["failed", service2.notReady];
  }
  function session({ service: service2, session: session3 }) {
    if (!session3) return WAITING;
    if (session3 === "failed") return ["failed", "none"];
    if (service2 === "unreachable") return ["failed", "unavailable: the service does not respond"];
    const seconds = Math.round(session3.secondsLeft);
    if (!seconds) return ["waiting", `expired, ${session3.id}: the next message gets a new session`];
    return ["ok", `${seconds} s left, ${session3.id}`];
  }
  function script({ script: script2 }) {
    if (!script2) return WAITING;
    return script2 === "loaded" ? ["ok", "loaded from OpenAI\u2019s CDN"] : ["failed", "not loaded"];
  }
  function chat({ service: service2, session: session3, script: script2, component }) {
    if (script2 === "failed") return ["failed", "unavailable: the component is not loaded"];
    if (component === "failed") return ["failed", "unavailable"];
    if (service2 === "unreachable") return ["failed", "unavailable: the service does not respond"];
    if (session3 === "failed") return ["failed", "unavailable: there is no session"];
    if (service2 !== null && service2 !== "ready") return ["failed", "unavailable: the service is not ready"];
    return component && session3 && service2 ? ["ok", "ready, send a message"] : WAITING;
  }

  // host-page/host.ts
  var CHECK_INTERVAL_MS = 1e4;
  setService({ apiUrl: location.origin, domainKey: document.body.dataset.domainKey });
  var pageSession = PageSession.of(getClientSecret);
  var facts = { service: null, session: null, script: null, component: null };
  var error = null;
  var runStatus = null;
  var currentSecret = null;
  var failedCall = null;
  var chat2 = null;
  var choices = null;
  var stopWatching = () => {
  };
  var startCount = 0;
  var isChecking = false;
  var session2 = {
    async secret(existing) {
      try {
        currentSecret = await pageSession.secret(existing);
        if (facts.session === "failed") error = null;
        updateSession();
        return currentSecret;
      } catch (reason) {
        facts.session = "failed";
        currentSecret = null;
        showError(reason);
        throw reason;
      }
    },
    invalidate: (secret) => pageSession.invalidate(secret)
  };
  var runs = new RunFollower(session2, (status) => {
    runStatus = status;
    render();
  });
  function byId(id) {
    return document.getElementById(id);
  }
  function render() {
    for (const [step, [state, text]] of Object.entries(steps(facts))) {
      const item = byId(step);
      if (item.dataset.state !== state) item.dataset.state = state;
      setText(item.querySelector(".state"), text);
    }
    const notReady = facts.service !== null && typeof facts.service === "object" ? facts.service.notReady : "";
    if (error) {
      setText(byId("error-message"), error instanceof ServiceError && error.code ? error.message : userMessage(error));
      setText(byId("error-advice"), adviceFor(error, missingSettings(notReady)));
    }
    byId("error").hidden = !error;
    setText(byId("run-message"), runStatus ? RUN_MESSAGES[runStatus] : "");
    byId("stop").hidden = !canStop(runStatus);
    byId("retry").hidden = !canRetry(runStatus);
  }
  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  function updateSession() {
    const described = currentSecret && describeSession(currentSecret);
    if (described) facts.session = { id: described.sessionId, secondsLeft: described.secondsLeft };
    render();
  }
  function report(reason) {
    console.error("ChatKit:", reason);
    showError(reason);
  }
  function showError(reason) {
    error = reason;
    render();
    if (isNetworkError(reason)) void checkService();
  }
  async function checkService() {
    if (isChecking) return;
    isChecking = true;
    const wasUnreachable = facts.service === "unreachable";
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), CHECK_INTERVAL_MS);
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
      if (facts.session === "failed") return start();
      if (error && isNetworkError(error)) error = null;
    }
    render();
  }
  async function start() {
    const thisStart = ++startCount;
    stopWatching();
    chat2 == null ? void 0 : chat2.remove();
    pageSession.invalidate();
    Object.assign(facts, { service: null, session: null, script: null, component: null });
    error = currentSecret = null;
    render();
    void checkService();
    session2.secret().catch(() => {
    });
    try {
      await loadChatKit();
    } catch (reason) {
      if (thisStart !== startCount) return;
      facts.script = "failed";
      return report(reason);
    }
    if (thisStart !== startCount) return;
    facts.script = "loaded";
    mountComponent();
  }
  function mountComponent() {
    const element = document.createElement("openai-chatkit");
    const fail = (reason) => {
      facts.component = "failed";
      report(reason);
    };
    const tracker = trackLastThread();
    runs.dispose();
    stopWatching();
    const stopTimeout = startReadyTimeout(fail);
    element.addEventListener("chatkit.ready", () => {
      stopTimeout();
      facts.component = "ready";
      render();
    });
    element.addEventListener("chatkit.error", ({ detail }) => {
      if (facts.session === "failed") return;
      const reason = failedCall ?? detail.error;
      failedCall = null;
      if (tracker.onError(reason) === "not_found") return mountComponent();
      report(reason);
    });
    element.addEventListener("chatkit.response.start", () => {
      error = null;
      render();
    });
    element.addEventListener("chatkit.thread.change", ({ detail }) => {
      runs.show(detail.threadId);
      tracker.onThreadChange(detail);
    });
    element.addEventListener("chatkit.thread.load.start", tracker.onThreadLoadStart);
    element.addEventListener("chatkit.thread.load.end", tracker.onThreadLoadEnd);
    byId("chat").replaceChildren(element);
    const stopObserving = watchRemoval(element, fail);
    stopWatching = () => {
      stopTimeout();
      stopObserving();
    };
    facts.component = null;
    chat2 = element;
    runs.connect(() => element.fetchUpdates());
    render();
    configure();
  }
  function configure() {
    chat2 == null ? void 0 : chat2.setOptions({
      api: chatKitApi(session2, { onFailure: (failure2) => failedCall = failure2, runs }),
      theme: chatKitTheme({ ...chatKitConfig.theme, darkMode: document.documentElement.dataset.theme === "dark" }),
      initialThread: lastThread(),
      ...choices && { composer: choices },
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
  byId("stop").addEventListener("click", () => void runs.stop());
  byId("retry").addEventListener("click", () => void runs.retry());
  byId("new").addEventListener("click", () => void start());
  byId("expire").addEventListener("click", () => {
    if (currentSecret) expire(currentSecret);
    updateSession();
  });
  byId("dark").addEventListener("click", () => setDark(document.documentElement.dataset.theme !== "dark"));
  systemDark.addEventListener("change", ({ matches }) => setDark(matches));
  setInterval(updateSession, 1e3);
  setInterval(() => document.hidden || void checkService(), CHECK_INTERVAL_MS);
  setDark(systemDark.matches);
  void start();
  void loadChoices().then((loaded) => {
    choices = loaded;
    if (choices) configure();
  });
})();
